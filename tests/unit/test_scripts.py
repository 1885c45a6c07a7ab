"""scripts/install_programs.py and scripts/busybox_image.py, into a folder of the test's own."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str):
    described = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.fixture
def install(tmp_path):
    module = load("install_programs")
    module.LIBRARY = str(tmp_path / "lib")
    module.PROGRAMS = str(tmp_path / "bin")
    module.CONTAINERS = str(tmp_path / "containers")
    return module


BOOKWORM = """Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: http://other.example/tools
Suites: tools-bookworm
Components: main
"""


def test_the_sources_of_another_release_come_from_the_same_mirrors():
    sources = load("apt_sources")
    first, second = sources.stanzas_of_sources(BOOKWORM, "bookworm", "trixie")
    assert first.splitlines() == [
        "Types: deb",
        "Suites: trixie trixie-updates",
        "URIs: http://mirror.example/debian",
        "Components: main",
    ]
    assert "Suites: trixie-security" in second.splitlines()
    assert "Signed-By: /usr/share/keyrings/k.gpg" in second.splitlines()
    (unstable,) = sources.stanzas_of_sources(BOOKWORM, "bookworm", "sid")
    assert "Suites: sid" in unstable.splitlines()


def test_a_source_of_one_line_becomes_a_stanza_with_its_options():
    text = "# deb http://no bookworm main\n"
    text += "deb [signed-by=/k.gpg arch=amd64,i386] http://m bookworm main contrib\n"
    (stanza,) = load("apt_sources").stanzas_of_list(text, "bookworm", "trixie")
    assert stanza.splitlines() == [
        "Types: deb",
        "Suites: trixie",
        "URIs: http://m",
        "Components: main contrib",
        "Signed-By: /k.gpg",
        "Architectures: amd64 i386",
    ]


def test_a_release_that_is_not_supported_is_one_line_with_those_that_are(tmp_path):
    other = tmp_path / "os-release"
    other.write_text('ID=ubuntu\nVERSION_CODENAME="noble"\n')
    done = subprocess.run(
        [SCRIPTS / "install"], env={"OS_RELEASE": str(other), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "install: unsupported release: ubuntu noble",
        "install: hint: use Debian 12 (bookworm) or Debian 13 (trixie)",
    ]
    done = subprocess.run([SCRIPTS / "fresh", "etch"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr == "unknown release: etch (one of: bookworm, trixie, sid)\n"


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file."""
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_a_second_install_writes_no_file(install, tmp_path, capsys):
    install.main()
    before = everything_below(tmp_path)
    install.main()
    assert everything_below(tmp_path) == before
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("install: installed: ")
    assert second.startswith("install: up to date: ")


def test_every_program_starts_from_its_own_version_and_an_empty_environment(install, tmp_path):
    install.main()
    for name in ("bufferzone", "containerd-shim-bufferzone-v2"):
        program = tmp_path / "bin" / name
        assert program.stat().st_mode & 0o777 == 0o755
        flag = "--version" if name == "bufferzone" else "-v"
        done = subprocess.run([program, flag], capture_output=True, text=True, env={}, cwd="/", check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "0.1.0" in done.stdout
    with open(tmp_path / "bin" / "bufferzone", encoding="utf-8") as file:
        assert file.readline() == "#!/usr/bin/python3 -IS\n"


def test_a_new_version_comes_beside_the_old_ones_and_few_stay(tmp_path):
    library = load("library")
    for number in range(9):
        files = {"bufferzone/__init__.py": b"N = %d\n" % number}
        assert library.install(str(tmp_path / "lib"), files, f"version{number}")
        os.utime(tmp_path / "lib" / f"version{number}", (number, number))
    names = sorted(os.listdir(tmp_path / "lib"))
    assert names == [f"version{number}" for number in range(3, 9)]
    assert (tmp_path / "lib/version8/bufferzone/__init__.py").read_text() == "N = 8\n"


def test_a_package_that_does_not_compile_leaves_what_was_there(tmp_path):
    library = load("library")
    library.install(str(tmp_path / "lib"), {"bufferzone/__init__.py": b""}, "good")
    with pytest.raises(SystemExit):
        library.install(str(tmp_path / "lib"), {"bufferzone/__init__.py": b"def"}, "bad")
    assert os.listdir(tmp_path / "lib") == ["good"]


def test_a_drop_in_that_was_changed_is_left_alone(install, tmp_path, capsys):
    install.main()
    drop_in = tmp_path / "containers" / install.DROP_IN
    ours = drop_in.read_text()
    drop_in.write_text("# mine\n")
    install.main()
    assert drop_in.read_text() == "# mine\n"
    assert Path(f"{drop_in}.new").read_text() == ours
    assert "left alone, because it was changed" in capsys.readouterr().err


def test_a_drop_in_of_an_older_version_is_replaced(install, tmp_path):
    install.main()
    drop_in = tmp_path / "containers" / install.DROP_IN
    ours = drop_in.read_text()
    drop_in.write_text("# of an older version\n")
    record = tmp_path / "lib" / "drop-in.json"
    record.write_text(json.dumps({"sha256": install.sha256("# of an older version\n")}))
    install.main()
    assert drop_in.read_text() == ours


def test_the_first_image_is_the_same_bytes_every_time_and_every_hash_holds():
    busybox = load("busybox_image")
    name, data = busybox.archive(busybox.layer())
    assert (name, data) == busybox.archive(busybox.layer())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    for path, content in files.items():
        if path.startswith("blobs/"):
            assert path == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    described = json.loads(files["index.json"])["manifests"][0]
    assert described["annotations"]["org.opencontainers.image.ref.name"] == name
    manifest = json.loads(files["blobs/sha256/" + described["digest"].removeprefix("sha256:")])
    for row in (manifest["config"], *manifest["layers"]):
        assert len(files["blobs/sha256/" + row["digest"].removeprefix("sha256:")]) == row["size"]
    (for_docker,) = json.loads(files["manifest.json"])  # Docker before 25 reads nothing else
    assert for_docker["RepoTags"] == [name]
    assert [for_docker["Config"], *for_docker["Layers"]] == [
        "blobs/" + row["digest"].replace(":", "/") for row in (manifest["config"], *manifest["layers"])
    ]
