"""A directory on the disk for what is to be kept or handed on, locked while it is used; that of a process
which was killed goes at the next.

The lock is a file's, by fcntl(2): processes that are forked from us do not have it, and it ends with us. Our
own other threads would get it, too: their directories are told by our pid in the name.
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

_PREFIX = "scratch-"
_LOCK = "lock"


def beside(image_store: str) -> str:
    """Where `bz fork` has them: beside the guest images and the templates. Memory of a VM does not belong
    into the state root, which is memory itself.
    """
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
        directory = tempfile.mkdtemp(prefix=_ours(), dir=parent)
        path = os.path.join(directory, _LOCK)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # somebody tidied it away before it was locked
        if _try_lock(lock) and os.path.exists(path):
            return directory, lock
        os.close(lock)


def tidy(parent: str) -> None:
    """Remove the directories that no other process has locked, but for ours."""
    for name in os.listdir(parent):
        directory = os.path.join(parent, name)
        if name.startswith(_ours()):
            continue
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


def _ours() -> str:
    """What the names of this process' directories begin with."""
    return f"{_PREFIX}{os.getpid()}-"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
