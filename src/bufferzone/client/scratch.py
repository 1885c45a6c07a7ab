"""A directory on the disk for what `bz fork` saves, locked while used; a killed fork's goes at the next.

Memory of a VM does not belong into the state root, which is memory itself. The lock is a file's, by fcntl(2):
processes that are forked from us do not have it, and it ends with us.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager

from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "fork-"
_LOCK = "lock"


def beside(image_store: str) -> str:
    """Where they lie: beside the guest images and the templates."""
    return os.path.join(os.path.dirname(image_store.rstrip("/")), "forks")


@contextmanager
def scratch(parent: str) -> Iterator[str]:
    """A new directory below `parent`, removed at the end. Raises `HostError`."""
    try:
        os.makedirs(parent, 0o700, exist_ok=True)
        tidy(parent)
        directory, lock = _make(parent)
    except OSError as error:
        raise HostError(f"cannot make a directory in {parent}: {error.strerror}", code="no-dir") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _make(parent: str) -> tuple[str, int]:
    while True:
        directory = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        path = os.path.join(directory, _LOCK)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # somebody tidied it away before it was locked
        if _try_lock(lock) and os.path.exists(path):
            return directory, lock
        os.close(lock)


def tidy(parent: str) -> None:
    """Remove the directories that nobody has locked."""
    for name in os.listdir(parent):
        directory = os.path.join(parent, name)
        if not name.startswith(_PREFIX) or os.path.islink(directory) or not os.path.isdir(directory):
            continue
        try:
            lock = os.open(
                os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError:
            continue  # gone, or not ours to judge
        try:
            if _try_lock(lock):
                shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
