"""One line through a pipe between two processes of ours: `ready`, `ready 3`, `ok`, or an error as JSON."""

from __future__ import annotations

import os

from bufferzone import errors, jsontext
from bufferzone.errors import BufferzoneError, HostError


class Ready:
    """Whoever waits for a line at the other end of `fd`, which is owned; -1: nobody does."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        if fd >= 0:
            os.set_inheritable(fd, False)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits still."""
        return self._fd >= 0

    def say(self, line: bytes) -> None:
        """The first line counts, any other is for nobody. Raises OSError: EPIPE where nobody waits."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.write(fd, line)
            finally:
                os.close(fd)


def read_line(fd: int) -> bytes:
    """What comes up to a line break or the end, at most 64 KiB; what comes behind the break is lost."""
    found = b""
    while b"\n" not in found and len(found) < 1 << 16:
        data = os.read(fd, 1 << 12)
        if not data:
            break
        found += data
    return found.partition(b"\n")[0]


def ready_line(word: bytes, others: int) -> bytes:
    """`word`, and how many processes of others are in the container's cgroup where there are any."""
    return b"%s %d\n" % (word, others) if others else word + b"\n"


def others_in(line: bytes, word: bytes) -> int | None:
    """What such a line says, without its end; None: it is none."""
    found, _, others = line.partition(b" ")
    return int(others or b"0") if found == word and (not others or others.isdigit()) else None


def error_line(error: BufferzoneError) -> bytes:
    """An error as one line of JSON: code, message, hint, and cls, the name of its class."""
    cls = errors.class_in_tree(error).__name__
    form = {"code": error.code, "message": error.message, "hint": error.hint, "cls": cls}
    return f"{jsontext.dumps(form)}\n".encode()


def error_from(line: bytes) -> BufferzoneError:
    """The error that another process of ours wrote as JSON."""
    classes = {cls.__name__: cls for cls in errors.all_error_classes()}
    try:
        form = jsontext.loads(line.decode())
        cls = classes.get(form["cls"], BufferzoneError)
        return cls(str(form["message"]), hint=str(form["hint"]), code=str(form["code"]))
    except (ValueError, KeyError, TypeError):
        return HostError(f"the shim said: {line[:200].decode('utf-8', 'replace')}", code="shim-died")
