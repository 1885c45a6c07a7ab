"""The files of a sandbox, as its container sees them: also where no program of it could help.

Each call is one process in the container that runs our own code, so that a path leads nowhere else, whatever
links there are. What comes from there is the guest's word: names are checked before they become the host's.
"""

from __future__ import annotations

import errno
import os

from bufferzone import jsontext
from bufferzone.errors import FileError, UsageError
from bufferzone.library import trees
from bufferzone.library.process import Process
from bufferzone.library.process_object import Wanted
from bufferzone.library.run import Limits, run
from bufferzone.library.values import Change, FileInfo
from bufferzone.wire.process_keys import FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

    from bufferzone.library.connections import Connections

    Path = str | os.PathLike[str]

#: bytes of a file that is read at once, of a listing, and of a tree, where nobody says otherwise
_MOST_FILE, _MOST_LISTING, _MOST_TREE = 1 << 30, 64 << 20, 16 << 30
_MOST_WORDS = 64 << 10
#: errno of the guest -> code of the error
_CODES = {
    errno.ENOENT: "no-such-file",
    errno.EEXIST: "file-exists",
    errno.ENOTDIR: "not-a-directory",
    errno.EISDIR: "is-a-directory",
    errno.ENOTEMPTY: "not-empty",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ENOSPC: "no-space",
    errno.EROFS: "read-only",
    errno.ELOOP: "link-loop",
}
#: operation -> what a refusal of it says of the path, and of the container
_DOING = {
    "read": ("cannot read", "in"),
    "write": ("cannot write", "in"),
    "list": ("cannot list", "in"),
    "stat": ("cannot look at", "in"),
    "mkdir": ("cannot make the directory", "in"),
    "remove": ("cannot remove", "in"),
    "pack": ("cannot copy", "out of"),
    "unpack": ("cannot copy to", "in"),
    "watch": ("cannot watch", "in"),
}


class Files:
    """Every path is one inside; a relative one begins at the container's working directory.

    Every method raises `FileError` with the guest's reason: no-such-file, no-space, permission and so on.
    """

    def __init__(
        self, connections: Connections, container_id: str, process_of: Callable[[Wanted], dict[str, Any]]
    ) -> None:
        self._connections, self._id, self._process_of = connections, container_id, process_of

    def read(self, path: Path, *, offset: int = 0, size: int = _MOST_FILE) -> bytes:
        """The content of a file, at most `size` bytes from `offset` on."""
        return self._do("read", path, output=size, offset=offset, size=size)

    def read_text(self, path: Path) -> str:
        """The content of a file as UTF-8; other bytes become U+FFFD."""
        return self.read(path).decode("utf-8", "replace")

    def write(
        self,
        path: Path,
        data: str | bytes | bytearray | memoryview,
        *,
        mode: int | None = None,
        append: bool = False,
    ) -> None:
        """Make or replace a file, in one step; directories above are made. `mode` are its permissions, else
        those it has, or 0644.
        """
        if not isinstance(data, (str, bytes, bytearray, memoryview)):
            raise UsageError("data: expected text or bytes")
        content = data.encode() if isinstance(data, str) else bytes(data)
        exact = mode is not None
        self._do(
            "write", path, stdin=content, mode=0o644 if mode is None else mode, exact=exact, append=append
        )

    def list(self, path: Path = ".") -> list[FileInfo]:
        """What is in a directory, by name."""
        return [_info(line) for line in self._do("list", path, output=_MOST_LISTING).splitlines()]

    def stat(self, path: Path, *, follow: bool = True) -> FileInfo:
        """A file; of a link with `follow` what it leads to."""
        return _info(self._do("stat", path, output=_MOST_LISTING, follow=follow))

    def exists(self, path: Path) -> bool:
        """Whether there is such a file."""
        try:
            self.stat(path)
        except FileError as error:
            if error.code in ("no-such-file", "not-a-directory"):
                return False
            raise
        return True

    def mkdir(self, path: Path, *, mode: int = 0o755) -> None:
        """Make a directory and those above; one that is there is fine."""
        self._do("mkdir", path, mode=mode)

    def remove(self, path: Path, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory, with `recursive` one with all that is in it."""
        self._do("remove", path, recursive=recursive)

    def copy_in(self, source: Path, target: Path) -> None:
        """Copy a file or directory of the host so that it is `target` inside."""
        with self._start("unpack", target) as process:
            with process.stdin as stream:
                try:
                    trees.send(os.fspath(source), stream)
                except BrokenPipeError:
                    pass  # it says why
            self._check(process, "unpack", target)

    def copy_out(self, source: Path, target: Path, *, limit: int = _MOST_TREE) -> None:
        """Copy a file or directory from inside so that it is `target` on the host: files, directories and
        links that lead nowhere out of it.

        Raises `GuestError` for anything else, and for more than `limit` bytes; what was copied by then stays.
        """
        with self._start("pack", source) as process:
            process.stdin.close()
            first = process.stdout.peek(1)  # nothing is made where there is nothing to copy
            if first:
                trees.receive(process.stdout, os.fspath(target), limit)
            self._check(process, "pack", source)

    def unpack(self, tar: BinaryIO, target: Path) -> None:
        """Put what a tar, compressed or not, holds into the directory `target`, which is there.

        Raises `CallerError` `bad-tar` for what is none, for names that lead out, and for hard links.
        """
        found = self._do("stat", target, output=_MOST_LISTING, doing="unpack", follow=True)
        if _info(found).kind != "directory":
            raise self._failure("unpack", os.fspath(target), errno.ENOTDIR)
        from bufferzone.library import tars

        with self._start("unpack", target) as process:
            with process.stdin as stream:
                try:
                    tars.send(tar, stream, lambda name: self.mkdir(os.path.join(os.fspath(target), name)))
                except BrokenPipeError:
                    pass  # it says why
            self._check(process, "unpack", target)

    def pack(self, source: Path, tar: BinaryIO, *, limit: int = _MOST_TREE) -> None:
        """Write a file or directory as a tar that has it under its own name. Raises as `copy_out`; links are
        told as they are.
        """
        from bufferzone.library import tars

        with self._start("pack", source) as process:
            process.stdin.close()
            if process.stdout.peek(1):
                top = os.path.basename(os.fspath(source).rstrip("/")) or "root"
                tars.receive(process.stdout, tar, top, limit)
            self._check(process, "pack", source)

    def watch(self, path: Path) -> Iterator[Change]:
        """What changes in a directory from now on, until the iterator is closed."""
        process = self._start("watch", path)
        process.stdin.close()
        if process.stdout.readline() != b"\n":
            with process:
                self._check(process, "watch", path)
        return _changes(process)

    # ---- inside

    def _do(
        self,
        operation: str,
        path: Path,
        *,
        stdin: bytes | None = None,
        output: int = 0,
        doing: str = "",
        **options: Any,
    ) -> bytes:
        """Its output. `doing`: the operation that it is a part of."""
        limits = Limits(None, None, output + _MOST_WORDS)
        done = run(self._connections, self._id, self._process(operation, path, options), stdin, limits)
        if not done.ok:
            raise self._error(doing or operation, path, done.stderr_bytes)
        return done.stdout_bytes

    def _start(self, operation: str, path: Path) -> Process:
        return Process(self._connections, self._id, self._process(operation, path, {}))

    def _process(self, operation: str, path: Path, options: dict[str, Any]) -> dict[str, Any]:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise UsageError(f"not a path: {text!a:.80}")
        process = self._process_of(Wanted([f"files-{operation}"]))
        return {**process, FILES: {"op": operation, "path": text, **options}}

    def _check(self, process: Process, operation: str, path: Path) -> None:
        """Wait for its end; raises what it says."""
        assert process.stderr is not None
        said = process.stderr.read(_MOST_WORDS)
        done = process.wait()
        if done is not None and not done.ok:
            raise self._error(operation, path, said)

    def _error(self, operation: str, path: Path, said: bytes) -> FileError:
        """Why, of the path that the guest names: it may be one below."""
        found = _object(said)
        number = found.get("errno")
        if not isinstance(number, int) or not 0 < number < 4096:
            return self._failure(operation, os.fspath(path), 0)
        return self._failure(operation, str(found.get("path")), number)

    def _failure(self, operation: str, path: str, number: int) -> FileError:
        """`number`: the errno; 0: the guest did not say."""
        doing, where = _DOING[operation]
        why = os.strerror(number).lower() if number else "the guest did not say why"
        hint = "" if path.startswith("/") else "a relative path begins at the container's working directory"
        text = f"{doing} {path!a:.120} {where} {self._id}: {why}"
        error = FileError(text, hint=hint, code=_CODES.get(number, ""))
        error.errno = number
        return error


def _changes(process: Process) -> Iterator[Change]:
    with process:
        for line in process.stdout:
            found = _object(line)
            yield Change(kind=str(found.get("kind")), name=str(found.get("name")))


def _object(text: bytes) -> dict[str, Any]:
    """What the guest said; nothing for anything else than an object."""
    try:
        found = jsontext.loads(text.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _info(line: bytes) -> FileInfo:
    found = _object(line)
    try:
        return FileInfo(
            name=str(found["name"]),
            kind=str(found["kind"]),
            size=int(found["size"]),
            mode=int(found["mode"]),
            uid=int(found["uid"]),
            gid=int(found["gid"]),
            mtime=int(found["mtime_ns"]) / 1e9,
            target=str(found["target"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileError("the guest said nothing of a file that makes sense") from error
