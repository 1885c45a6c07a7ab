"""File systems whose files are made as they are read: their size says 0, and a guest believes it.

virtiofs reads no further than the size, so such a file would be empty in the guest, without an error. A
volume of one is refused, and one that lies below a volume is taken off: a path that is not there is an
answer, an empty file is a lie. With them go sysfs and /dev, in whose place `sandbox/mounts.py` has the
guest's own. Of any other file system a single file is asked whether it goes on after its size: FUSE can do
that too (direct_io; lxcfs). Source: proc(5), cgroups(7), fuse.rst of Linux.
"""

from __future__ import annotations

import os
import stat

from bufferzone.linux import filesystem

_TAKEN_OFF = frozenset((*filesystem.PSEUDO.values(), "sysfs", "devtmpfs"))


def kind_of(source: int) -> str:
    """Which of them an open file or directory lies on; empty: none."""
    return filesystem.PSEUDO.get(filesystem.magic_of(source), "")


def has_more_than_its_size(source: int) -> bool:
    """Whether a file gives bytes after its end. Asked is one whose size says 0, or that lies on FUSE."""
    said = os.fstat(source)
    if not stat.S_ISREG(said.st_mode) or (said.st_size and filesystem.magic_of(source) != filesystem.FUSE):
        return False
    try:
        fd = os.open(f"/proc/thread-self/fd/{source}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # nor can it be read through the share
    try:
        return bool(os.pread(fd, 1, said.st_size)) and os.fstat(fd).st_size <= said.st_size
    except OSError:
        return False
    finally:
        os.close(fd)


def mounted_below(source: int) -> list[str]:
    """Where below an open directory one is mounted that is to be taken off, as paths from there: those that
    would go with another are left out.
    """
    top = os.readlink(f"/proc/thread-self/fd/{source}").rstrip("/") + "/"
    found: list[str] = []
    for path, kind in sorted(_mounts()):
        place = path[len(top) :]
        if not path.startswith(top) or (kind not in _TAKEN_OFF and path != "/dev"):
            continue
        if not any(f"{place}/".startswith(f"{above}/") for above in found):
            found.append(place)
    return found


def _mounts() -> list[tuple[str, str]]:
    """(mount point, type) of every mount that the calling thread sees."""
    found = []
    with open("/proc/thread-self/mountinfo", "rb", buffering=0) as file:
        for line in (file.readall() or b"").splitlines():
            left, _, right = line.partition(b" - ")
            fields = left.split(b" ")
            found.append((os.fsdecode(_plain(fields[4])), right.split()[0].decode()))
    return found


def _plain(path: bytes) -> bytes:
    """A path without mountinfo's escapes: blanks, tabs, newlines and backslashes are \\ooo there."""
    for code in (b"040", b"011", b"012", b"134"):
        path = path.replace(b"\\" + code, bytes([int(code, 8)]))
    return path
