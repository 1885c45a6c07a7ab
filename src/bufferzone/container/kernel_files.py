"""The small files of /proc, /sys and cgroups: each is read and written in one go."""

from __future__ import annotations

import os


def read(path: str) -> str:
    """The text of a file, or nothing where it does not exist (controller absent) or is not readable now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return _read_all(fd)
    finally:
        os.close(fd)


def _read_all(fd: int) -> str:
    parts = []
    try:
        while data := os.read(fd, 65536):
            parts.append(data)
    except OSError:
        pass  # ENODEV: the cgroup went away while we read
    return b"".join(parts).decode("ascii", "replace")


def write(path: str, text: str) -> None:
    """Write `text` in one go; raises OSError naming the file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
