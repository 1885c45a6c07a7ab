"""Files without a name: they go with their last descriptor, whatever ends us.

Source: open(2) O_TMPFILE, linkat(2), proc(5) /proc/PID/fd.
"""

from __future__ import annotations

import os


def create(directory: str) -> int:
    """A new file on the file system of `directory` that is gone with its last descriptor; raises OSError."""
    os.makedirs(directory, 0o700, exist_ok=True)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without them
        import tempfile

        fd, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
        return fd


def give_name(fd: int, path: str) -> None:
    """Let the file be found at the absolute `path`, on its file system. Raises OSError: EEXIST; ENOENT for
    one that had a name before.
    """
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:  # a directory's descriptor has link(2) follow the first name
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=root, follow_symlinks=True)
    finally:
        os.close(root)
