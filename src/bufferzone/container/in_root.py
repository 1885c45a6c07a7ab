"""Paths inside a container's root file system, resolved by the kernel so that no symlink of the image leads
out.

Every function takes the root as an O_PATH directory descriptor and returns O_PATH descriptors
(close-on-exec). Missing mount points are made as runc makes them: directories 0755, empty files. Raises
OSError. Source: openat2(2) RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import errno
import os
import stat

from bufferzone.linux.paths import O_PATH, open_in_root

_MAX_LINKS = 40


def clean(path: str) -> str:
    """`path` as an absolute path without `.`, `..` and empty parts, `..` taken lexically (Go's
    filepath.Join).
    """
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def find(root: int, path: str, flags: int = 0) -> int:
    """An existing object."""
    return open_in_root(root, clean(path), O_PATH | flags)


def directory(root: int, path: str, links: int = 0) -> int:
    """A directory, made with its parents when missing; the targets of dangling symlinks are made inside
    the root.
    """
    path = clean(path)
    try:
        return open_in_root(root, path, O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        if path == "/":
            raise
    parent, name = os.path.split(path)
    above = directory(root, parent, links)
    try:
        os.mkdir(name, 0o755, dir_fd=above)
    except FileExistsError:
        return directory(root, _target_of(above, parent, name, links), links + 1)
    finally:
        os.close(above)
    return open_in_root(root, path, O_PATH | os.O_DIRECTORY)


def file(root: int, path: str, links: int = 0) -> int:
    """Anything but a directory; an empty regular file is made when missing, with its parents."""
    path = clean(path)
    try:
        return open_in_root(root, path, O_PATH)
    except FileNotFoundError:
        pass
    parent, name = os.path.split(path)
    above = directory(root, parent)
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o755, dir_fd=above))
    except FileExistsError:
        return file(root, _target_of(above, parent, name, links), links + 1)
    finally:
        os.close(above)
    return open_in_root(root, path, O_PATH)


def parent_of(root: int, path: str) -> tuple[int, str]:
    """The directory a new object goes into (made when missing), and its name there."""
    parent, name = os.path.split(clean(path))
    return directory(root, parent), name


def open_file(root: int, path: str, flags: int) -> int:
    """An existing file, open for use and not as O_PATH."""
    return open_in_root(root, clean(path), flags)


def is_directory(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def _target_of(above: int, parent: str, name: str, links: int) -> str:
    """Where the dangling symlink `name` points, from the root; its own path if somebody has just made it."""
    if links >= _MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    try:
        return os.path.join(parent, os.readlink(name, dir_fd=above))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.path.join(parent, name)  # no symlink: another container of the same root was faster
