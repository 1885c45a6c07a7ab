"""Trees of files as one stream, between the library and a process of the guest: records, then contents.

A record is a header, a name and, of a link, its target as the content; a file's bytes follow its record. Who
reads a stream that the guest has sent gets every name checked here: none leads anywhere but down.
"""

from __future__ import annotations

import struct

from bufferzone.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIRECTORY, FILE, LINK, END = b"d", b"f", b"l", b"e"
_HEADER = struct.Struct("=cIqQH")  # kind, mode, mtime in ns, bytes of content, bytes of name
_MOST_NAME = 4096
#: bytes that are read or written at a time
CHUNK = 256 << 10


class Entry:
    """One record: `name` relative to the root of the tree, empty for that itself; `size` bytes follow."""

    __slots__ = ("kind", "mode", "mtime_ns", "name", "size")

    def __init__(self, kind: bytes, name: str, *, mode: int = 0, mtime_ns: int = 0, size: int = 0) -> None:
        self.kind, self.name, self.mode, self.mtime_ns, self.size = kind, name, mode, mtime_ns, size


def encode(entry: Entry) -> bytes:
    """A record without its content."""
    name = entry.name.encode("utf-8", "surrogateescape")
    return _HEADER.pack(entry.kind, entry.mode, entry.mtime_ns, entry.size, len(name)) + name


def entries(read: Callable[[int], bytes]) -> Iterator[Entry]:
    """The records of a stream. Who is given one reads its content before the next.

    `read(n)` gives n bytes, fewer at the end of the stream. Raises `GuestError` `bad-tree` for a stream that
    is cut off, or a name that is none.
    """
    while True:
        kind, mode, mtime_ns, size, length = _HEADER.unpack(_exactly(read, _HEADER.size))
        if kind == END:
            return
        name = _exactly(read, min(length, _MOST_NAME + 1)).decode("utf-8", "surrogateescape")
        if kind not in (DIRECTORY, FILE, LINK) or length > _MOST_NAME or not _leads_down(name):
            raise GuestError(f"a tree of files has an entry that is none: {name!a:.80}", code="bad-tree")
        if kind == LINK and size > _MOST_NAME:
            raise GuestError(f"a link is too long: {name!a:.80}", code="bad-tree")
        yield Entry(kind, name, mode=mode & 0o777, mtime_ns=mtime_ns, size=size)


def content(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """The bytes that follow a record, in pieces; raises `GuestError`."""
    while size:
        data = _exactly(read, min(size, CHUNK))
        size -= len(data)
        yield data


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) != size:
        raise GuestError("a tree of files was cut off", code="bad-tree")
    return data


def _leads_down(name: str) -> bool:
    parts = name.split("/")
    return not name or ("\0" not in name and not {"", ".", ".."} & set(parts))
