"""Trees of files as a tar on a stream of the caller's, as `docker cp -` has them."""

from __future__ import annotations

import os
import tarfile

from bufferzone.errors import CallerError, GuestError
from bufferzone.library.trees import write_all
from bufferzone.wire import files
from bufferzone.wire.files import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_KINDS = {files.DIRECTORY: tarfile.DIRTYPE, files.FILE: tarfile.REGTYPE, files.LINK: tarfile.SYMTYPE}
_PLAIN = 0o777


def receive(stream: BinaryIO, tar: BinaryIO, top: str, limit: int) -> None:
    """Write what a stream of the guest's says as a tar whose names begin with `top`, links as they are.

    Raises `GuestError` for what must not be, and for more than `limit` bytes; a broken pipe is passed on.
    """
    with tarfile.open(fileobj=tar, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in files.entries(stream.read):
            limit -= entry.size
            if limit < 0:
                raise GuestError("the tree is larger than the limit", code="too-large")
            info = tarfile.TarInfo(f"{top}/{entry.name}" if entry.name else top)
            info.type, info.mode, info.mtime = (
                _KINDS[entry.kind],
                entry.mode or _PLAIN,
                entry.mtime_ns // 10**9,
            )
            if entry.kind == files.LINK:
                target = b"".join(files.content(stream.read, entry.size))
                info.linkname = target.decode("utf-8", "surrogateescape")
                archive.addfile(info)
            else:
                info.size = entry.size
                archive.addfile(info, _Content(files.content(stream.read, entry.size)))


class _Content:
    """What a tar reads a file from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end."""
        while size < 0 or len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        size = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def send(tar: BinaryIO, stream: BinaryIO, make_directory: Callable[[str], None]) -> None:
    """Write what a tar, compressed or not, says as a stream for the guest; `make_directory` makes one that
    the tar names only as a part of others. Devices and FIFOs are left out.

    Raises `CallerError` for what is no tar, for a name that leads out, and for a hard link; a broken pipe is
    passed on.
    """
    made: set[str] = set()
    try:
        with tarfile.open(fileobj=tar, mode="r|*") as archive:
            for info in archive:
                name = _name(info.name)
                if not name:
                    continue  # the directory that it goes into, which is there
                above = os.path.dirname(name)
                if above and above not in made:
                    make_directory(above)
                    made.add(above)
                if info.isdir():
                    made.add(name)
                _send_one(archive, info, name, stream)
    except (tarfile.TarError, EOFError) as error:
        raise CallerError(f"not a tar: {error}", code="bad-tar") from error
    write_all(stream, files.encode(Entry(files.END, "")))


def _name(text: str) -> str:
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts:
        raise CallerError(f"a name in the tar leads out of it: {text!a:.120}", code="bad-tar")
    return "/".join(parts)


def _send_one(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str, stream: BinaryIO) -> None:
    mode, mtime_ns = info.mode & _PLAIN, int(info.mtime * 10**9)
    if info.isdir():
        write_all(stream, files.encode(Entry(files.DIRECTORY, name, mode=mode, mtime_ns=mtime_ns)))
    elif info.issym():
        target = info.linkname.encode("utf-8", "surrogateescape")
        write_all(stream, files.encode(Entry(files.LINK, name, size=len(target))) + target)
    elif info.isreg():
        entry = Entry(files.FILE, name, mode=mode, mtime_ns=mtime_ns, size=info.size)
        write_all(stream, files.encode(entry))
        content = archive.extractfile(info)
        while content is not None and (data := content.read(files.CHUNK)):
            write_all(stream, data)
    elif info.islnk():
        hint = "tar --hard-dereference"
        raise CallerError(f"a hard link in the tar: {info.name!a:.120}", hint=hint, code="bad-tar")
