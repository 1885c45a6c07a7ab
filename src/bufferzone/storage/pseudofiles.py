"""File systems whose files are made as they are read: their size says 0, and a guest believes it.

virtiofs reads no further than the size, so such a file would be empty in the guest, without an error. A
volume of one is refused, and one that lies below a volume is taken off: a path that is not there is an
answer, an empty file is a lie. sysfs says a page, and a short read is believed. Source: proc(5), cgroups(7).
"""

from __future__ import annotations

import os

from bufferzone.linux import filesystem


def kind_of(source: int) -> str:
    """Which of them an open file or directory lies on; empty: none."""
    return filesystem.PSEUDO.get(filesystem.magic_of(source), "")


def mounted_below(source: int) -> list[str]:
    """Where below an open directory one is mounted, outer before inner, as paths from there."""
    top = os.readlink(f"/proc/thread-self/fd/{source}").rstrip("/") + "/"
    kinds = frozenset(filesystem.PSEUDO.values())
    return [path[len(top) :] for path, kind in _mounts() if kind in kinds and path.startswith(top)]


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
