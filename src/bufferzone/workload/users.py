"""Who a process is: a user as a person writes it, looked up in the root file system's own /etc/passwd.

Those files may be an image's: they are opened as a process in that root would, and what does not fit is
passed over. Source: passwd(5), group(5), Dockerfile reference on USER.
"""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.errors import HostError, UsageError
from bufferzone.images import layered
from bufferzone.linux import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_BYTES = 1 << 20
#: where the root file system says who there is
FILES = ("etc/passwd", "etc/group")
_MOST_ID = (1 << 32) - 2


class User:
    """Ids, the other groups, and the home directory."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid, self.gid, self.groups, self.home = uid, gid, groups, home


def find(rootfs: str, text: str) -> User:
    """`text` is [NAME|UID][:GROUP|GID]; empty is root. Raises `UsageError` for a name that is not there.

    Without a group it has those that /etc/group gives the name. A number need not be in any file.
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _look_up(lambda path: _content(root, path), text)
    finally:
        os.close(root)


def find_in_container(directory: str, rootfs: str, text: str) -> User:
    """The same in the root file system of a running container whose state is in `directory`: as its shim,
    which may have mounted it, sees it.
    """
    owner = state.owner_pid(directory)
    try:
        return find(f"/proc/{owner}/root{rootfs}" if owner else rootfs, text)
    except OSError as error:
        raise HostError(f"cannot look up a user in {rootfs}: {error.strerror}", code="no-root") from error


def find_in_layers(layers: Sequence[str], text: str) -> User:
    """The same in an image's layers, topmost first."""
    return _look_up(lambda path: layered.read(layers, path, MOST_BYTES), text)


def _look_up(read: Callable[[str], bytes], text: str) -> User:
    name, colon, group = text.partition(":")
    users, groups = _rows(read("etc/passwd"), 7), _rows(read("etc/group"), 4)
    name = name or "0"
    row = next((r for r in users if r[0] == name), None)
    if row is None and not _is_id(name):
        raise UsageError(f"no such user in /etc/passwd of the root file system: {name[:60]!a}")
    row = row or next((r for r in users if r[2] == name), None)
    uid = int(row[2]) if row else int(name)
    if colon:
        return User(uid, _group(groups, group), [], row[5] if row else "/")
    if row is None:
        return User(uid, 0, [], "/")
    more = [int(r[2]) for r in groups if row[0] in r[3].split(",") and r[2] != row[3]]
    return User(uid, int(row[3]) if _is_id(row[3]) else 0, more, row[5] or "/")


def _group(groups: list[list[str]], name: str) -> int:
    for row in groups:
        if row[0] == name:
            return int(row[2])
    if not _is_id(name):
        raise UsageError(f"no such group in /etc/group of the root file system: {name[:60]!a}")
    return int(name)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:12]) <= _MOST_ID


def _content(root: int, path: str) -> bytes:
    """Nothing when there is no such file."""
    try:
        fd = paths.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        return os.read(fd, MOST_BYTES)
    except OSError:
        return b""  # not a file
    finally:
        os.close(fd)


def _rows(content: bytes, fields: int) -> list[list[str]]:
    """The lines with that many fields whose third is an id."""
    rows = [line.split(":") for line in content.decode("utf-8", "replace").splitlines()]
    return [row for row in rows if len(row) == fields and _is_id(row[2])]
