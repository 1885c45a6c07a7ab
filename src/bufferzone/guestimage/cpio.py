"""A deterministic writer of "newc" cpio archives, which Linux unpacks as its first root file system.

Same entries, same bytes: sorted by path, owner 0:0, mtime 0, inode numbers counted from 1, no hard links.
Device nodes are only records in the archive, so nobody needs to be root. Reading archives is not offered.
Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterable
from typing import BinaryIO

from bufferzone.record import Record

_MAGIC = b"070701"


class Entry(Record):
    """One object of the tree: absolute guest path, st_mode with type bits, content (or a link's target)."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path=path, mode=stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path=path, mode=stat.S_IFREG | permissions, data=data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def character_device(path: str, major: int, minor: int, permissions: int) -> Entry:
    return Entry(path=path, mode=stat.S_IFCHR | permissions, device=(major, minor))


def complete(entries: Iterable[Entry]) -> list[Entry]:
    """The entries sorted by path with missing parents added; raises `ValueError` on a duplicate."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if not entry.path.startswith("/") or "/" + posixpath.normpath(entry.path).lstrip("/") != entry.path:
            raise ValueError(f"not a normal absolute path: {entry.path}")
        if entry.path in found:
            raise ValueError(f"path given twice: {entry.path}")
        found[entry.path] = entry
    for path in list(found):
        parent = posixpath.dirname(path)
        while parent != "/" and parent not in found:
            found[parent] = directory(parent)
            parent = posixpath.dirname(parent)
    return sorted(found.values(), key=lambda entry: entry.path)


def write(entries: Iterable[Entry], out: BinaryIO) -> None:
    """Write the archive, parents completed and sorted. What `out` raises comes through."""
    for inode, entry in enumerate(complete(entries), 1):
        _write_record(out, entry, inode)
    _write_record(out, Entry(path="/TRAILER!!!", mode=0), 0)


def _write_record(out: BinaryIO, entry: Entry, inode: int) -> None:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # inode, mode, uid, gid, nlink, mtime, size, dev major/minor, rdev major/minor, name size, check sum
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % number for number in numbers) + name
    out.write(header + bytes(-len(header) % 4))
    out.write(entry.data + bytes(-len(entry.data) % 4))
