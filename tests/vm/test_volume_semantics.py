"""docs/volumes.md says for each kind of volume what holds on it; here each thing is tried in real VMs."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from vm.podman import ROOT
from vm.test_podman_volumes import PYTHON

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

PROBE = (Path(__file__).parent / "probe.py").read_text()
PAGE = ROOT / "docs" / "volumes.md"
#: column of the page's table -> (container, directory in it)
PLACES = {
    "volume": ("semantics-shared", "/l/probe"),
    "root file system": ("semantics-shared", "/srv/probe"),
    "tmpfs": ("semantics-shared", "/t/probe"),
    "overlay": ("semantics-shared", "/o/probe"),
    "root on a disk": ("semantics-disk", "/srv/probe"),
}
#: waits until something happens in directory argv[1], at most 2 s: prints what, or `nothing`
LISTEN = """
import ctypes, os, select, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0x100)
print("listening", flush=True)
print("heard" if select.select([fd], [], [], 2)[0] else "nothing")
"""


@pytest.fixture(scope="module")
def volume(podman):
    directory: Path = podman.directory / "semantics"
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def boxes(podman, nothing_left, volume):
    lower = volume.parent / "semantics-lower"
    lower.mkdir()
    common = [
        "--detach",
        "--volume",
        "/usr:/host:ro",
        "--env",
        "PYTHONHOME=/host",
        "--cap-add",
        "SYS_ADMIN,MKNOD",
    ]
    common += ["--security-opt", "seccomp=unconfined"]
    shared = ["--volume", f"{volume}:/l", "--volume", f"{lower}:/o:O", "--tmpfs", "/t:size=64m"]
    on_disk = ["--annotation", "bufferzone.rootfs=block"]
    made = {"semantics-shared": shared, "semantics-disk": on_disk}
    for name, words in made.items():
        podman("run", *common, *words, "--name", name, podman.image, "sleep", "1000000")
    yield tuple(made)
    for name in made:
        podman("rm", "--force", "--time", "0", name)


def table(kernel: tuple[int, ...]) -> dict[str, dict[str, str]]:
    """column -> thing -> what the page says, of this guest kernel where a cell tells 6.1 and 6.12 apart."""
    lines = PAGE.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| on a | "))
    columns = [cell.strip() for cell in lines[start].strip("|").split("|")][1:]
    found: dict[str, dict[str, str]] = {column: {} for column in columns}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        thing, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for column, cell in zip(columns, cells, strict=True):
            found[column][thing] = cell.split(", ")[-1 if kernel >= (6, 12) else 0]
    return found


def whose_size(podman, box: str, place: str, volume: Path) -> str:
    """Whether a file system is as large as the host's below it."""
    blocks, size = podman("exec", box, "stat", "-f", "-c", "%b %S", place).text.split()
    of_host = os.statvfs(volume)
    same = int(blocks) * int(size) == of_host.f_blocks * of_host.f_frsize
    return "the host's" if same else "its own"


@pytest.mark.parametrize("column", PLACES)
def test_what_the_page_says_of_a_kind_of_volume_is_what_it_does(podman, boxes, volume, column):
    box, place = PLACES[column]
    podman("exec", box, "mkdir", "-p", place)
    said = podman("exec", box, *PYTHON, PROBE, place)
    seen = dict(line.split("\t") for line in said.lines)
    seen["size and free space"] = whose_size(podman, box, place, volume)
    release = podman("exec", box, "uname", "-r").text
    assert seen == table(tuple(int(part) for part in release.split(".")[:2]))[column]


def test_changes_of_the_host_are_not_heard_of(podman, boxes, volume):
    argv = podman.argv("exec", "semantics-shared", *PYTHON, LISTEN, "/l")
    with subprocess.Popen(argv, env=podman.environment(), stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout.readline() == "listening\n"
        (volume / "made-by-host").touch()
        assert watcher.stdout.readline() == "nothing\n"


def test_a_socket_of_the_host_is_seen_and_not_connected_to(podman, boxes, volume):
    with socket.socket(socket.AF_UNIX) as server:
        directory = os.open(volume, os.O_PATH)
        server.bind(f"/proc/self/fd/{directory}/host.sock")
        server.listen()
        program = "import socket; socket.socket(socket.AF_UNIX).connect('/l/host.sock')"
        done = podman("exec", "semantics-shared", *PYTHON, program, status=1)
        os.close(directory)
    assert "ConnectionRefusedError" in done.complaint


def test_a_mount_that_the_host_makes_below_a_volume_later_is_not_there(podman, boxes, volume):
    below = volume / "later"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "later", below], check=True)
    try:
        (below / "file").touch()
        assert podman("exec", "semantics-shared", "ls", "/l/later").lines == []
    finally:
        subprocess.run(["umount", below], check=True)


def test_a_tmpfs_is_full_at_the_size_that_was_asked_for(podman, boxes):
    words = ("dd", "if=/dev/zero", "of=/t/full", "bs=1M", "count=65")
    done = podman("exec", "semantics-shared", *words, status=1)
    assert "No space left on device" in done.complaint
    size = podman("exec", "semantics-shared", "stat", "-f", "-c", "%b %S %f", "/t").text
    assert size == f"{64 << 20 >> 12} 4096 0"
    podman("exec", "semantics-shared", "rm", "/t/full")
