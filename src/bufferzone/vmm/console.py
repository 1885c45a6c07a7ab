"""The serial console of a guest: everything that arrives is kept, bounded, and nothing in it is ever
interpreted.

The bytes are the guest's, so hostile. On disk they stay as they are; for a message they are made printable
first. Refuses: to parse. That a kernel panicked is learnt from pvpanic over QMP, not from a text.
"""

from __future__ import annotations

import os
import threading

from bufferzone.errors import HostError
from bufferzone.linux import process

#: bytes kept in memory, for messages
RING_BYTES = 64 << 10
#: size of the file; the older half is dropped when it is full
FILE_BYTES = 1 << 20


class BoundedLog:
    """Bytes in order, the last `RING_BYTES` in memory and about the last `FILE_BYTES` in an open file, if
    any.

    Owns `file_fd`. A full disk loses the file's part and nothing else.
    """

    def __init__(self, file_fd: int = -1) -> None:
        self._file_fd = file_fd
        self._size = 0
        self._ring = bytearray()
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append `data`."""
        with self._lock:
            self._ring += data
            del self._ring[:-RING_BYTES]
            try:
                self._write_file(data)
            except OSError:
                self._close_file()

    def _write_file(self, data: bytes) -> None:
        if self._file_fd < 0:
            return
        if self._size + len(data) > FILE_BYTES:
            # start again with the recent past: one write, and the file never shows a torn rotation for long
            data = bytes(self._ring)
            os.ftruncate(self._file_fd, 0)
            self._size = 0
        self._size += os.pwrite(self._file_fd, data, self._size)

    def tail(self, lines: int = 20, *, most: int = 500) -> list[str]:
        """The last lines as text that is safe on a terminal; over-long lines are cut to `most` characters."""
        with self._lock:
            text = self._ring.decode("utf-8", "replace")
        found = [printable(line.rstrip("\r"), most) for line in text.split("\n") if line.strip()]
        return found[-lines:]

    def _close_file(self) -> None:
        if self._file_fd >= 0:
            os.close(self._file_fd)
            self._file_fd = -1

    def close(self) -> None:
        """Close the file; what is in memory stays readable. May be called twice."""
        with self._lock:
            self._close_file()


class Reader:
    """A thread that moves bytes from `fd` (which it owns) into a log until the other end closes."""

    def __init__(self, name: str, fd: int, log: BoundedLog) -> None:
        self.log = log
        self._fd = fd
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start reading; not before the helpers were forked. Until then the socket's buffer holds the
        bytes."""
        self._thread.start()

    def join(self, timeout_s: float = 1.0) -> None:
        """Wait until everything that was written has been read, once the writer has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        process.hold_only()
        try:
            while chunk := os.read(self._fd, 1 << 16):
                self.log.write(chunk)
        except OSError:
            pass  # reset by peer: as good as the end
        finally:
            os.close(self._fd)
            self.log.close()


def open_file(path: str) -> int:
    """Create or truncate a log file for `BoundedLog`, mode 0600, never through a symbolic link.

    Raises HostError, on a full disk for example.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error


def printable(text: str, limit: int = 500) -> str:
    """Foreign text for a message of ours: one line, no control characters, bounded."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
