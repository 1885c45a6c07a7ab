"""What `bz node` writes into the files of engines, and how it takes it back. No engine is asked."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from bufferzone.cli.bz import engine_files as files
from bufferzone.errors import UsageError

ROOT = Path(__file__).parents[2]
DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}


def bz(*words):
    command = [str(ROOT / "bin" / "bz"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("text", [DEBIAN, DEBIAN.replace("version = 2", "version = 3"), "", "version = 3\n"])
def test_containerds_file_gets_the_runtime_and_loses_nothing(text):
    made = files.with_containerd(text)
    before, after = tomllib.loads(text), tomllib.loads(made)
    runtimes = after["plugins"][CRI[after["version"]]]["containerd"].pop("runtimes")
    assert list(runtimes) == ["bufferzone"]
    assert runtimes["bufferzone"]["runtime_type"] == "io.containerd.bufferzone.v2"
    for name, table in before.get("plugins", {}).items():
        assert table.items() <= after["plugins"][name].items()
    assert files.with_containerd(made) == made


@pytest.mark.parametrize("text", [DEBIAN, "", "version = 3\n"])
def test_what_was_written_is_taken_back(text):
    assert files.without_containerd(files.with_containerd(text)) == text
    assert files.without_containerd(text) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 1\n", "version 1"),
        ("[grpc]\n", "version 1"),
        ("version = [", "config.toml"),
        (f'version = 2\n[plugins."{CRI[2]}".containerd.runtimes.bufferzone]\n', "already"),
        (files._BEGIN + "\n", "the line is missing"),
    ],
)
def test_a_file_of_containerds_that_is_not_understood_is_left_alone(text, words):
    with pytest.raises(UsageError, match=words):
        files.with_containerd(text)


@pytest.mark.parametrize("text", ["", '{"data-root": "/srv"}', '{"runtimes": {"runsc": {"path": "/r"}}}'])
def test_dockers_file_gets_the_runtime_and_gives_it_back(text):
    made = files.with_docker(text, "/usr/bin/bufferzone")
    assert json.loads(made)["runtimes"]["bufferzone"] == {"path": "/usr/bin/bufferzone"}
    assert files.with_docker(made, "/usr/bin/bufferzone") == made
    back = files.without_docker(made)
    assert (json.loads(back) if back else {}) == (json.loads(text) if text else {})


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"runtimes": []}', '{"runtimes": {"bufferzone": {"path": "/mine"}}}']
)
def test_a_file_of_dockers_that_is_not_understood_is_left_alone(text):
    with pytest.raises(UsageError, match=r"daemon\.json"):
        files.with_docker(text, "/usr/bin/bufferzone")


def test_the_drop_in_of_cri_o_is_toml():
    table = tomllib.loads(files.with_crio("", "/usr/bin/bufferzone"))["crio"]["runtime"]["runtimes"]
    assert table["bufferzone"]["runtime_path"] == "/usr/bin/bufferzone"


def test_setup_writes_and_undo_takes_back_once(tmp_path):
    path = tmp_path / "etc" / "config.toml"
    path.parent.mkdir()
    path.write_text(DEBIAN)
    path.chmod(0o600)
    words = ("--for", "containerd", "--config", str(path), "--no-check")
    for said in ("written", "is so already"):
        done = bz("node", "setup", *words)
        assert (done.returncode, done.stdout) == (0, f"{path}: {said}\n"), done.stderr
    assert "bufferzone" in path.read_text()
    for said in ("as it was", "nothing of ours is in it"):
        assert bz("node", "undo", *words).stdout == f"{path}: {said}\n"
    assert (path.read_text(), path.stat().st_mode & 0o777) == (DEBIAN, 0o600)


def test_setup_takes_back_what_it_wrote_where_no_container_starts(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(DEBIAN)
    nobody = str(tmp_path / "nobody.sock")
    done = bz("node", "setup", "--for", "containerd", "--config", str(path), "--address", nobody)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("bz: ")
    assert path.read_text() == DEBIAN


@pytest.mark.parametrize("words", [("setup",), ("setup", "--for", "rkt"), ("look", "--for", "docker")])
def test_a_wrong_word_is_one_line(words):
    done = bz("node", *words)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) <= 2


def test_the_runtime_class_names_the_handler_that_setup_writes():
    lines = (ROOT / "deploy" / "kubernetes" / "runtimeclass.yaml").read_text().splitlines()
    (handler,) = [line.split("#")[0].split(":")[1].strip() for line in lines if line.startswith("handler:")]
    assert handler == files.NAME
    resources = (ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text().split("resources:")[1]
    for name in resources.replace("-", "").split():
        assert (ROOT / "deploy" / "kubernetes" / name).is_file()
