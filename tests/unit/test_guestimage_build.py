"""Whole builds from the distribution's packages; skipped with the reason where apt cannot provide them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bufferzone.errors import HostError, UsageError
from bufferzone.guestimage import agent, apt, build, distro, lean, rootfs, store
from bufferzone.guestimage.recipe import Kernel
from bufferzone.model import ImageRef

SOURCE = Path(agent.package_directory())


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[apt.Package], Path]:
    """The pinned packages and a directory with their files: from this machine's store, else through apt."""
    if not all(shutil.which(program) for program in ("dpkg-deb", "lz4")):
        pytest.skip("needs the programs dpkg-deb and lz4")
    own = store.default_store()
    pinned = build.pinned_packages(store.read_index(own).get("recipes", {}).get("distro", {}))
    if rootfs.is_complete(pinned) and not apt.missing(pinned, f"{own}/cache"):
        return pinned, Path(own) / "cache"
    cache = tmp_path_factory.mktemp("cache")
    try:
        pinned = apt.resolve([*distro.Distro().kernel_packages(), *rootfs.packages()])
        apt.fetch(pinned, str(cache), lambda line: None)
    except HostError as error:
        pytest.skip(f"needs packages through apt: {error.line()}")
    return pinned, cache


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to ask apt or the network fails the test."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("apt was asked")

    monkeypatch.setattr(apt, "resolve", refuse)
    monkeypatch.setattr(apt, "fetch", refuse)
    monkeypatch.setattr(apt, "needed_by", refuse)


@pytest.fixture
def new_store(tmp_path: Path, packages: tuple[list[apt.Package], Path]) -> Callable[[str], str]:
    """Make a store that knows and holds the packages but no image."""

    def make(name: str) -> str:
        root = tmp_path / name
        pinned, cache = packages
        (root / "cache").mkdir(parents=True)
        for package in pinned:
            (root / "cache" / package.file).symlink_to(cache / package.file)
        row = {"packages": build._pins(pinned)}
        (root / "index.json").write_text(json.dumps({"recipes": {"distro": row}}))
        return str(root)

    return make


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A bufferzone package with a small agent in place of the real one."""
    root = tmp_path / "package"
    root.mkdir()
    for part in ("__init__.py", "errors.py", "record.py"):
        shutil.copy(SOURCE / part, root)
    for part in ("linux", "wire"):
        shutil.copytree(SOURCE / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "guest").mkdir()
    (root / "guest/__init__.py").write_text("")
    (root / "guest/__main__.py").write_text(
        "import json, socket, ctypes, termios\ndef main(): print('hello')\n"
    )
    return root


def ensure(directory: str, package: Path, progress: Callable[[str], None] = lambda line: None) -> ImageRef:
    return build.ensure_image(directory, package=str(package), progress=progress)


@pytest.mark.usefixtures("offline")
def test_two_builds_of_the_same_packages_are_the_same_image(
    new_store: Callable[[str], str], package: Path
) -> None:
    first, second = ensure(new_store("a"), package), ensure(new_store("b"), package)
    assert first.digest == second.digest
    assert Path(first.initrd).read_bytes() == Path(second.initrd).read_bytes()
    left, right = store.read_manifest(first.directory), store.read_manifest(second.directory)
    assert left == right
    assert left["kernel"]["release"].endswith("cloud-amd64")
    assert {row["name"] for row in left["packages"]} > set(rootfs.LIBRARY_PACKAGES)
    assert b"CONFIG_PVH=y" in Path(first.directory, "config").read_bytes()
    store.verify(first)


@pytest.mark.usefixtures("offline")
def test_nothing_is_built_twice_until_the_agent_changes(
    new_store: Callable[[str], str], package: Path
) -> None:
    directory, lines = new_store("a"), list[str]()
    first = ensure(directory, package, lines.append)
    assert any("built image" in line for line in lines)
    lines.clear()
    assert ensure(directory, package, lines.append) == first
    assert lines == []
    (package / "guest/__main__.py").write_text("def main(): print('changed')\n")
    second = ensure(directory, package, lines.append)
    assert second.digest != first.digest
    assert store.open_image(directory) == second
    assert store.open_image(directory, first.digest) == first


@pytest.mark.usefixtures("offline")
def test_a_truncated_image_is_built_again(new_store: Callable[[str], str], package: Path) -> None:
    directory = new_store("a")
    image = ensure(directory, package)
    os.truncate(image.kernel, 1000)
    with pytest.raises(HostError, match="damaged"):
        store.open_image(directory)
    assert ensure(directory, package) == image
    store.verify(image)


@pytest.mark.usefixtures("offline")
def test_what_the_agent_imports_and_the_guest_lacks_fails_the_build(
    new_store: Callable[[str], str], package: Path
) -> None:
    directory = new_store("a")
    for text, reason in (
        ("def main():\n    import sqlite3\n", "sqlite3"),  # also where the import hides in a function
        ("def main(:\n", "does not compile"),
    ):
        (package / "guest/__main__.py").write_text(text)
        with pytest.raises(HostError, match=reason) as caught:
            ensure(directory, package)
        assert caught.value.code == "guest-python"
        assert sorted(os.listdir(directory)) == ["cache", "index.json", "lock"]


@pytest.mark.usefixtures("offline")
def test_a_full_disk_is_one_line_and_leaves_nothing(
    new_store: Callable[[str], str], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = new_store("a")

    def full(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(build, "_write", full)
    with pytest.raises(HostError, match="No space left on device") as caught:
        ensure(directory, package)
    assert caught.value.code == "image-store"
    assert sorted(os.listdir(directory)) == ["cache", "index.json", "lock"]


def test_builders_at_the_same_time_make_one_image(new_store: Callable[[str], str], package: Path) -> None:
    directory = new_store("a")
    program = (
        "import sys; from bufferzone.guestimage import build; "
        "print(build.ensure_image(sys.argv[1], package=sys.argv[2]).digest)"
    )
    argv = [sys.executable, "-c", program, directory, str(package)]
    env = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum("built image" in text for text in outputs) == 1
    assert len({text.splitlines()[-1] for text in outputs}) == 1


def test_the_guest_tree_holds_no_source_shell_or_signature(
    new_store: Callable[[str], str], package: Path
) -> None:
    image = ensure(new_store("a"), package)
    rows = [line.split(" ", 3) for line in Path(image.directory, "contents").read_text().splitlines()]
    paths = [path for _, _, _, path in rows]
    assert paths == sorted(paths)
    assert not [path for path in paths if path.endswith((".py", "/sh", "busybox"))]
    assert {"/init", "/dev/console", "/usr/bin/python3"} <= set(paths)
    libraries = {match[0] for path in paths if (match := re.match(r"/usr/lib/python3\.\d+/", path))}
    assert len(libraries) == 1  # the one of the interpreter, whatever release this is
    standard = libraries.pop()
    assert f"{standard}os.pyc" in paths  # by which the interpreter finds the others
    assert f"{standard}socket.pyc" in paths
    assert not {f"{standard}{name}.pyc" for name in ("uuid", "dataclasses", "pathlib")} & set(paths)
    assert "/usr/lib/bufferzone/bufferzone/guest/__main__.pyc" in paths
    assert "/usr/sbin/modprobe" not in paths  # the kernel would run it all through its own initialization
    data = Path(image.initrd).read_bytes()
    assert b"~Module signature appended~" not in data
    listed = data.split(b"etc/bufferzone/modules\0", 1)[1].lstrip(b"\0").split(b"\n")
    assert listed[0].endswith(b".ko")  # which comes first depends on what the kernel has built in
    loaded = [path for path in paths if path.endswith(".ko")]
    assert [path for path in loaded if path.endswith("/overlay.ko")]  # virtiofs is built in from 6.12 on


def test_an_agent_that_is_not_there_is_named(tmp_path: Path, package: Path) -> None:
    (package / "guest/__main__.py").unlink()
    with pytest.raises(HostError, match="agent is not in") as caught:
        ensure(str(tmp_path / "store"), package)
    assert caught.value.code == "agent-missing"
    assert not (tmp_path / "store").exists()


def test_an_unknown_guest_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing") as caught:
        build.ensure_image(str(tmp_path), guest="nothing")
    assert caught.value.hint == "one of: stock, lean"


@pytest.mark.usefixtures("offline")
def test_the_lean_guest_is_built_beside_the_stock_one(
    new_store: Callable[[str], str], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = new_store("a")
    stock = ensure(directory, package)
    source = apt.Package(name="linux-source-6.12", version="1", file="s_1_all.deb", size=1, sha256="a" * 64)
    built_in = frozenset((*rootfs.BOOT_MODULES, *rootfs.OPTIONAL_MODULES))
    ours = Kernel(release="6.12", vmlinux=b"ours", config=b"", builtin=built_in, facts={"symbols": 5})
    monkeypatch.setattr(lean.Lean, "kernel", lambda *_: ours)
    pins = build.pinned_packages(store.read_index(directory)["recipes"]["distro"])
    monkeypatch.setattr(build, "_packages", lambda *_: [*pins, source])
    assert not build.is_ready(directory, "lean")
    image = build.ensure_image(directory, guest="lean", package=str(package), progress=lambda line: None)
    manifest = store.read_manifest(image.directory)
    assert manifest["kernel"] == {"release": "6.12", "symbols": 5}
    assert manifest["modules"] == []
    assert tuple(manifest["arguments"]) == image.arguments == lean.LEAN_ARGUMENTS
    assert image.digest != stock.digest
    assert ensure(directory, package) == stock  # neither took the other's place
    assert Path(image.kernel).read_bytes() == b"ours"
