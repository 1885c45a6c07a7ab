"""Trees of files between the host and a stream: sent as they are, received with suspicion.

What is received comes from a guest. Every name is opened below the target without following a link, so that a
link that was sent first leads nobody astray (the fault of `kubectl cp` and `docker cp`: CVE-2019-1002101,
CVE-2018-15664); a link is made only if it stays inside.
"""

from __future__ import annotations

import os
import stat

from bufferzone.errors import CallerError, GuestError, HostError
from bufferzone.wire import files
from bufferzone.wire.files import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def send(source: str, stream: BinaryIO) -> None:
    """Write a file or tree of the host as a stream; what is neither file, directory nor link is left out.

    Raises `CallerError` for what cannot be read; a broken pipe is passed on.
    """
    try:
        found = os.stat(source)
        if stat.S_ISDIR(found.st_mode):
            for entry, path in _walk(source, found):
                _send_one(entry, path, stream)
        else:
            _send_one(_entry(files.FILE, "", found), source, stream)
        write_all(stream, files.encode(Entry(files.END, "")))
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"cannot read {error.filename!a:.120}: {error.strerror}"
        raise CallerError(text, code="no-source") from error


def _walk(top: str, found: os.stat_result) -> list[tuple[Entry, str]]:
    rows = [(_entry(files.DIRECTORY, "", found), top)]
    pending = [(top, "")]
    while pending:
        directory, above = pending.pop()
        for each in sorted(os.scandir(directory), key=lambda each: each.name):
            found, name = each.stat(follow_symlinks=False), above + each.name
            if stat.S_ISDIR(found.st_mode):
                rows.append((_entry(files.DIRECTORY, name, found), each.path))
                pending.append((each.path, f"{name}/"))
            elif stat.S_ISREG(found.st_mode):
                rows.append((_entry(files.FILE, name, found), each.path))
            elif stat.S_ISLNK(found.st_mode):
                rows.append((Entry(files.LINK, name), each.path))
    return rows


def _entry(kind: bytes, name: str, found: os.stat_result) -> Entry:
    size = found.st_size if kind == files.FILE else 0
    return Entry(kind, name, mode=stat.S_IMODE(found.st_mode), mtime_ns=found.st_mtime_ns, size=size)


def _send_one(entry: Entry, path: str, stream: BinaryIO) -> None:
    if entry.kind == files.LINK:
        target = os.fsencode(os.readlink(path))
        entry.size = len(target)
        write_all(stream, files.encode(entry) + target)
        return
    if entry.kind == files.DIRECTORY:
        write_all(stream, files.encode(entry))
        return
    with open(path, "rb", buffering=0) as file:
        entry.size = os.fstat(file.fileno()).st_size
        write_all(stream, files.encode(entry))
        left = entry.size
        while left:  # what is added meanwhile is left out, what is cut off is zeros
            data = file.read(min(left, files.CHUNK)) or bytes(min(left, files.CHUNK))
            write_all(stream, data)
            left -= len(data)


def write_all(stream: BinaryIO, data: bytes) -> None:
    """Write it to a stream that may be unbuffered."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def receive(stream: BinaryIO, target: str, limit: int) -> None:
    """Make what a stream of the guest's says at `target`. Raises `GuestError` for what must not be, and
    `HostError`.
    """
    try:
        for entry in files.entries(stream.read):
            limit -= entry.size
            if limit < 0:
                raise GuestError("the tree is larger than the limit", code="too-large")
            _make(entry, target, stream)
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else target
        raise HostError(f"cannot write {place!a:.120}: {error.strerror}", code="write-failed") from error


def _make(entry: Entry, target: str, stream: BinaryIO) -> None:
    if not entry.name:
        _make_top(entry, target, stream)
        return
    *above, name = entry.name.split("/")
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in above:
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        if entry.kind == files.DIRECTORY:
            _make_directory(fd, name, entry.mode)
        elif entry.kind == files.FILE:
            _make_file(fd, name, entry, stream)
        else:
            _make_link(fd, name, entry, stream)
    finally:
        os.close(fd)


def _make_top(entry: Entry, target: str, stream: BinaryIO) -> None:
    if entry.kind == files.DIRECTORY:
        os.makedirs(target, exist_ok=True)
    elif entry.kind == files.FILE:
        directory = os.open(os.path.dirname(target) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _make_file(directory, os.path.basename(target), entry, stream)
        finally:
            os.close(directory)
    else:
        raise GuestError("the top of a tree is a link", code="bad-tree")


def _make_directory(fd: int, name: str, mode: int) -> None:
    try:
        os.mkdir(name, mode | 0o700, dir_fd=fd)
    except FileExistsError:
        os.close(os.open(name, _DIRECTORY, dir_fd=fd))


def _make_file(fd: int, name: str, entry: Entry, stream: BinaryIO) -> None:
    _unlink(fd, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=fd), "wb") as file:
        for data in files.content(stream.read, entry.size):
            file.write(data)
        file.flush()
        os.fchmod(file.fileno(), entry.mode)
        os.utime(file.fileno(), ns=(entry.mtime_ns, entry.mtime_ns))


def _make_link(fd: int, name: str, entry: Entry, stream: BinaryIO) -> None:
    target = b"".join(files.content(stream.read, entry.size))
    inside = os.path.normpath(os.path.join(os.path.dirname(os.fsencode(entry.name)), target))
    if target.startswith(b"/") or inside == b".." or inside.startswith(b"../") or b"\0" in target:
        text = f"a link leads out of the tree: {entry.name!a:.80} -> {target!a:.80}"
        raise GuestError(text, hint="what was copied before it is there", code="unsafe-link")
    _unlink(fd, name)
    os.symlink(target, name, dir_fd=fd)


def _unlink(fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
