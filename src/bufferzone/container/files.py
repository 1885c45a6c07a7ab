"""Files of a container, for the library: one operation in a child that has entered it, in place of a program.

The child has the container's root, user and rights, so that a path can lead nowhere else. stdin and stdout
are the data, stderr is one JSON object with the errno where it failed. Nothing is imported in here: the root
is the container's by then.
"""

from __future__ import annotations

import errno
import os
import stat

from bufferzone.container import program
from bufferzone.container.jsontext import encode
from bufferzone.errors import BufferzoneError
from bufferzone.linux import inotify
from bufferzone.wire import files as wire
from bufferzone.wire.files import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from bufferzone.container.channel import ChildEnd
    from bufferzone.container.child_spec import ChildSpec

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_WATCH_SIZE = 1 << 16


def serve(wanted: dict[str, Any], channel: ChildEnd, child_spec: ChildSpec) -> NoReturn:
    """Do what `wanted` says (`op`, `path` and more) and exit: 0, or 1 with the error on stderr."""
    try:
        os.chdir(str(child_spec.process.get("cwd") or "/"))
        program.take_identity(child_spec.process, child_spec.seccomp)
    except OSError as error:
        channel.fail(error)
    channel.close()  # from now on it counts as a program that runs
    status = 0
    try:
        _OPERATIONS[str(wanted["op"])](str(wanted["path"]), wanted)
    except OSError as error:
        status = _report(error.errno or errno.EIO, str(error.filename or wanted["path"]))
    except (BufferzoneError, ValueError):
        status = _report(errno.EINVAL, str(wanted["path"]))
    os._exit(status)


def _report(number: int, path: str) -> int:
    os.write(2, encode({"errno": number, "path": path}))
    return 1


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _exactly(size: int) -> bytes:
    """So many bytes of stdin, fewer at its end."""
    parts = []
    while size and (data := os.read(0, min(size, wire.CHUNK))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _open_file(path: str) -> int:
    """A regular file, open for reading."""
    fd = os.open(path, _READ)
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind):
        number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(number, os.strerror(number), path)
    return fd


def _read(path: str, wanted: dict[str, Any]) -> None:
    fd = _open_file(path)
    os.lseek(fd, int(wanted.get("offset") or 0), os.SEEK_SET)
    left = int(wanted["size"])
    while left and (data := os.read(fd, min(left, wire.CHUNK))):
        _write_all(1, data)
        left -= len(data)


def _write(path: str, wanted: dict[str, Any]) -> None:
    """The whole of stdin; who looks sees the old file or the new one, unless it is appended to."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    if wanted.get("append"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        _fill(os.open(path, flags, int(wanted["mode"])))
        return
    path = os.path.realpath(path)  # a link stays one
    before = _mode_of(path)
    temporary = f"{path[:200]}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(temporary, flags, int(wanted["mode"]))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
    try:
        if before is not None or wanted.get("exact"):
            os.fchmod(fd, int(wanted["mode"]) if before is None or wanted.get("exact") else before)
        _fill(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _mode_of(path: str) -> int | None:
    """The permissions of a file that is there; raises OSError for what is no file."""
    try:
        found = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        number = errno.EISDIR if stat.S_ISDIR(found) else errno.EINVAL
        raise OSError(number, os.strerror(number), path)
    return stat.S_IMODE(found)


def _fill(fd: int) -> None:
    while data := os.read(0, wire.CHUNK):
        _write_all(fd, data)


def _described(name: str, found: os.stat_result, target: str) -> bytes:
    form = {
        "name": name,
        "kind": _KINDS.get(stat.S_IFMT(found.st_mode), "other"),
        "size": found.st_size,
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mtime_ns": found.st_mtime_ns,
        "target": target,
    }
    return encode(form) + b"\n"


def _stat(path: str, wanted: dict[str, Any]) -> None:
    found = os.stat(path) if wanted.get("follow") else os.lstat(path)
    target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
    _write_all(1, _described(os.path.basename(path.rstrip("/")) or "/", found, target))


def _list(path: str, wanted: dict[str, Any]) -> None:
    fd = os.open(path, _READ | os.O_DIRECTORY)
    for name in sorted(os.listdir(fd)):
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(found.st_mode) else ""
        except FileNotFoundError:
            continue  # somebody was faster
        _write_all(1, _described(name, found, target))


def _mkdir(path: str, wanted: dict[str, Any]) -> None:
    os.makedirs(path, int(wanted["mode"]), exist_ok=True)


def _remove(path: str, wanted: dict[str, Any]) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
    elif wanted.get("recursive"):
        _empty(os.open(path, _READ | os.O_DIRECTORY | os.O_NOFOLLOW))
        os.rmdir(path)
    else:
        os.rmdir(path)


def _empty(fd: int) -> None:
    """Remove what is in a directory, and close it; links are not followed."""
    try:
        for name in os.listdir(fd):
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                _empty(os.open(name, _READ | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd))
                os.rmdir(name, dir_fd=fd)
            else:
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)


def _pack(path: str, wanted: dict[str, Any]) -> None:
    """A file or a tree as a stream; what is neither file, directory nor link is left out."""
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        _send(Entry(wire.DIRECTORY, "", mode=stat.S_IMODE(found.st_mode), mtime_ns=found.st_mtime_ns))
        _pack_directory(os.open(path, _READ | os.O_DIRECTORY), "")
    else:
        _pack_file(_open_file(path), "")
    _send(Entry(wire.END, ""))


def _send(entry: Entry, content: bytes = b"") -> None:
    _write_all(1, wire.encode(entry) + content)


def _pack_directory(fd: int, above: str) -> None:
    for name in sorted(os.listdir(fd)):
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        mode, below = stat.S_IMODE(found.st_mode), above + name
        if stat.S_ISDIR(found.st_mode):
            _send(Entry(wire.DIRECTORY, below, mode=mode, mtime_ns=found.st_mtime_ns))
            _pack_directory(os.open(name, _READ | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd), f"{below}/")
        elif stat.S_ISREG(found.st_mode):
            _pack_file(os.open(name, _READ | os.O_NOFOLLOW, dir_fd=fd), below)
        elif stat.S_ISLNK(found.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=fd))
            _send(Entry(wire.LINK, below, size=len(target)), target)
    os.close(fd)


def _pack_file(fd: int, name: str) -> None:
    """A file as large as it is now: what is added meanwhile is left out, what is cut off is zeros."""
    found = os.fstat(fd)
    mode = stat.S_IMODE(found.st_mode)
    _send(Entry(wire.FILE, name, mode=mode, mtime_ns=found.st_mtime_ns, size=found.st_size))
    left = found.st_size
    while left:
        data = os.read(fd, min(left, wire.CHUNK)) or bytes(min(left, wire.CHUNK))
        _write_all(1, data)
        left -= len(data)
    os.close(fd)


def _unpack(path: str, wanted: dict[str, Any]) -> None:
    """The stream on stdin below `path`, which is made; files that are there are replaced."""
    os.makedirs(os.path.dirname(path.rstrip("/")) or ".", exist_ok=True)
    for entry in wire.entries(_exactly):
        place = os.path.join(path, entry.name) if entry.name else path
        if entry.kind == wire.DIRECTORY:
            os.makedirs(place, exist_ok=True)
            os.chmod(place, entry.mode)
            continue
        if not os.path.isdir(place) or os.path.islink(place):
            try:
                os.unlink(place)
            except FileNotFoundError:
                pass
        if entry.kind == wire.LINK:
            os.symlink(_exactly(entry.size), place)
            continue
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        for data in wire.content(_exactly, entry.size):
            _write_all(fd, data)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        os.close(fd)


def _watch(path: str, wanted: dict[str, Any]) -> None:
    """Lines of JSON, one a change of what is in the directory, until somebody ends us. One empty line
    comes first: from then on nothing is missed.
    """
    fd = inotify.watch_all(path)
    _write_all(1, b"\n")
    while raw := os.read(fd, _WATCH_SIZE):
        for kind, name in inotify.changes(raw):
            _write_all(1, encode({"kind": kind, "name": name}) + b"\n")


_OPERATIONS: dict[str, Callable[[str, dict[str, Any]], None]] = {
    "read": _read,
    "write": _write,
    "stat": _stat,
    "list": _list,
    "mkdir": _mkdir,
    "remove": _remove,
    "pack": _pack,
    "unpack": _unpack,
    "watch": _watch,
}
