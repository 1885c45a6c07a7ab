"""The Debian package as a file: what is in it, twice the same bytes; what is printed from the flags' tables.

That it installs, upgrades and purges is what `scripts/package --check RELEASE` proves in a tree.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bufferzone import __version__
from bufferzone.cli import bz, oci

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
EPOCH = 1_700_000_000


def load(name: str):
    described = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _scripts_on_the_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A package that was built, and unpacked into `root` and `control`."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not here: not a Debian")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    path = load("package_deb").build(str(tmp_path), "1.2-3")
    subprocess.run(["dpkg-deb", "-R", path, tmp_path / "root"], check=True)
    return tmp_path / "root"


def test_the_same_source_gives_the_same_bytes_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
    deb = load("package_deb")
    first = Path(deb.build(str(tmp_path / "one"))).read_bytes()
    before = os.umask(0o077)
    try:
        second = Path(deb.build(str(tmp_path / "two"))).read_bytes()
    finally:
        os.umask(before)
    assert first == second


def test_a_version_between_releases_sorts_before_the_release():
    version = load("package_deb").package_version(EPOCH)
    if "~" not in version:
        pytest.skip("this is a release, or no repository")
    assert version.startswith(f"{__version__}~git20231114.")
    compare = ["dpkg", "--compare-versions", version, "lt", f"{__version__}-1"]
    assert subprocess.run(compare, check=False).returncode == 0


def test_the_programs_say_one_line_when_the_package_is_not_configured(packed):
    for name in ("bufferzone", "bz", "containerd-shim-bufferzone-v2"):
        program = packed / "usr/bin" / name
        assert program.stat().st_mode & 0o777 == 0o755
        text = program.read_text().replace("/usr/lib/bufferzone", "/nonexistent")
        done = subprocess.run(
            ["/usr/bin/python3", "-IS", "-c", text], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert (
            done.stderr == f"{name}: the package is not fully installed (hint: dpkg --configure bufferzone)\n"
        )


def test_the_programs_run_the_version_that_the_installer_made_current(packed, tmp_path):
    place = tmp_path / "lib"
    library = [packed / "usr/share/bufferzone/library.py", packed / "usr/share/bufferzone", place]
    for _ in range(2):  # dpkg may call the script again
        subprocess.run(["/usr/bin/python3", "-IS", *library], check=True)
    assert sorted(path.name for path in place.iterdir()) == sorted(
        ["current", os.readlink(place / "current")]
    )
    text = (packed / "usr/bin/bufferzone").read_text().replace("/usr/lib/bufferzone", str(place))
    command = ["/usr/bin/python3", "-IS", "-c", text, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"bufferzone version {__version__}\n")


def test_every_verb_and_flag_is_on_the_manual_page(packed):
    page = gzip.decompress((packed / "usr/share/man/man1/bufferzone.1.gz").read_bytes()).decode()
    for verb, (module, summary) in oci.VERBS.items():
        assert f".SS {verb}" in page
        assert summary[1:].replace("-", "\\-") in page
        for flag in importlib.import_module(f"bufferzone.cli.oci.{module}").FLAGS:
            if not flag.hidden:
                assert "\\fB\\-\\-" + flag.names[0].replace("-", "\\-") in page
    assert "DIR\n" in gzip.decompress((packed / "usr/share/man/man1/bz.1.gz").read_bytes()).decode().replace(
        "\\fR", ""
    )


def test_no_manual_page_has_a_word_that_groff_takes_for_a_request(packed):
    pages = [gzip.decompress(path.read_bytes()).decode() for path in packed.glob("usr/share/man/*/*.gz")]
    assert len(pages) == 3
    requests = {"TH", "SH", "SS", "TP", "B", "I", "nf", "fi"}
    found = {line[1:].split()[0] for page in pages for line in page.splitlines() if line.startswith(".")}
    assert found <= requests


def bash_words(*words: str) -> list[str]:
    """What bash would offer for a command line whose last word is being typed."""
    script = load("completion").bash(next(p for p in load("command_tables").programs() if p.name == words[0]))
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _{words[0]}_completion"
    known = "compopt() { :; }; bufferzone() { echo one two; }"
    text = "\n".join([known, script, asked, "printf '%s\\n' \"${COMPREPLY[@]}\""])
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("bufferzone", "cr"), ["create"]),
        (("bufferzone", "--log-format", "text", "che"), ["checkpoint"]),
        (("bufferzone", "--log-format", "j"), ["json"]),
        (("bufferzone", "--log-format", "=", "j"), ["json"]),
        (("bufferzone", "create", "--bun"), ["--bundle"]),
        (("bufferzone", "--root", "=", "/x", "exec", "--det"), ["--detach"]),
        (("bufferzone", "kill", "t"), ["two"]),
        (("bufferzone", "create", "--bundle", "/us"), ["/usr"]),
        (("bz", "template", "m"), ["make"]),
        (("bz", "pool", "st"), ["start", "stop"]),
        (("bz", ""), [*bz.VERBS, "--root", "--debug", "--version", "-v", "--help", "-h"]),
    ],
)
def test_bash_completes_verbs_flags_values_files_and_containers(words, offered):
    assert bash_words(*words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_every_shell_is_one_that_it_reads(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    for program in load("command_tables").programs():
        script = tmp_path / program.name
        script.write_text(load("completion").SHELLS[shell](program))
        done = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_fish_offers_verbs_and_values(tmp_path):
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    program = load("command_tables").programs()[0]
    (tmp_path / "script").write_text(load("completion").fish(program))
    for line, first in (("bufferzone crea", "create\t"), ("bufferzone list --format t", "table\t")):
        ask = ["fish", "--no-config", "-c", f"source {tmp_path}/script; complete -C '{line}'"]
        assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout.startswith(first)


def test_removal_is_refused_while_a_process_runs_from_the_package(tmp_path, monkeypatch, capsys):
    running = load("still_running")
    monkeypatch.setattr(running, "SHIM_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["still_running.py", str(tmp_path)])
    assert running.main() == 0
    program = tmp_path / "main.py"
    program.write_text("print('up', flush=True)\nimport signal\nsignal.pause()\n")
    with subprocess.Popen(["/usr/bin/python3", "-IS", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        assert running.main() == 1
        told = capsys.readouterr().err
        assert told.startswith(f"bufferzone: still in use by 1 processes: {process.pid} (hint: ")
        assert told.count("\n") == 1
        monkeypatch.setattr(running, "SHIM_S", 60.0)  # one that is ending is awaited
        process.send_signal(signal.SIGKILL)
        assert running.main() == 0


def test_a_wheel_has_the_same_commands():
    with open(SCRIPTS.parent / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = {"bufferzone-mcp"}  # its SDK is a wheel, too
    assert project["scripts"].keys() - extras == load("install_programs").ENTRIES.keys()
    assert "version" in project["dynamic"]
    for target in project["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_lintian_has_nothing_to_say(tmp_path):
    if not shutil.which("lintian"):
        pytest.skip("lintian is not installed")
    path = load("package_deb").build(str(tmp_path))
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
