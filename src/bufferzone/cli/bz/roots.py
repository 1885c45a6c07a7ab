"""Where the containers of this machine are: those of bz, Podman and the library below one root, those of
containerd and Docker below one for each of containerd's namespaces.
"""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_CONTAINERD = "/run/bufferzone-containerd"


def roots(flag: str) -> list[str]:
    """The one that was asked for, else this user's, and for root those of containerd."""
    own = state.runtime_root(flag)
    try:
        names = [] if flag or os.geteuid() else sorted(os.listdir(_CONTAINERD))
    except OSError:
        names = []  # there is no containerd here
    return [own, *(os.path.join(_CONTAINERD, name) for name in names)]


def namespace(root: str) -> str:
    """containerd's namespace, empty for another root."""
    above, name = os.path.split(root)
    return name if above == _CONTAINERD else ""


def containers(flag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(root, directory, state) of each; one that is being made or removed at this moment is left out."""
    for root in roots(flag):
        for id in state.list_ids(root):
            try:
                directory = state.directory(root, id)
                yield root, directory, state.read_state(directory)
            except (BufferzoneError, ValueError):
                continue  # half of it is there
