"""A file that a detached process has as its stdout belongs to its user afterwards, who may open it anew.

As runc and crun do it, for regular files alone: in the VM the process has pipes, which are its user's there.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_S_IFMT, _S_IFREG = 0o170000, 0o100000  # the stat module costs an import


def give(stdio: Sequence[int], user: dict[str, Any], linux: Callable[[], dict[str, Any]]) -> None:
    """Give the regular files of `stdio` to `user`, of config.json's process; `linux()` is that section.

    What the file system refuses stays as it is, as with runc.
    """
    files = [fd for fd in stdio if os.fstat(fd).st_mode & _S_IFMT == _S_IFREG]
    if not files:
        return
    section = linux()
    owner = (
        _on_host(int(user.get("uid", 0)), section.get("uidMappings", [])),
        _on_host(int(user.get("gid", 0)), section.get("gidMappings", [])),
    )
    for fd in files:
        try:
            os.fchown(fd, *owner)
        except OSError:
            pass  # read-only, or a number that our own user namespace does not have


def _on_host(id: int, rows: list[dict[str, int]]) -> int:
    """An id of the container's as the host counts; one that no row has is nobody's there: -1, unchanged."""
    if not rows:
        return id
    for row in rows:
        start = row.get("containerID", 0)
        if start <= id < start + row.get("size", 0):
            return id - start + row.get("hostID", 0)
    return -1
