"""Where the bundle of a sandbox lies: one directory each, beside the guest images, gone with its container.

    SANDBOXES/NAME/config.json, rootfs/, upper/, work/     NAME is unique, state.json's `bundle` leads here
    SANDBOXES/NAME/container                               STATE ROOT, a NUL byte, the container's id
    SANDBOXES/NAME/image                                   the id of the image that it was made from, if any
    SANDBOXES/NAME/lock                                    locked by flock(2) while it is being made
    SANDBOXES/NAME/transient                               it is locked until its end, and goes with it

What a killed command or a plain `bufferzone delete` leaves is removed when the next one is made.
"""

from __future__ import annotations

import fcntl
import os

from bufferzone import config, jsontext, log, state
from bufferzone.client import removal
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.oci import ports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_OWNER, _LOCK, _TRANSIENT = "container", "lock", "transient"
_PORTS, _IMAGE = "ports", "image"
OUT, ERR = "stdout.log", "stderr.log"


def parent() -> str:
    """The directory of all of them: beside the guest images of this user."""
    return os.path.join(os.path.dirname(config.load().image_store.rstrip("/")), "sandboxes")


class Place:
    """A new directory, locked until `close` or `remove`."""

    def __init__(self, root: str, id: str, *, transient: bool = False) -> None:
        """For the container `id` below the state root `root`. `transient`: where whoever has it locked is
        gone, the container, once it has ended, is removed with it. Raises `HostError`.
        """
        directory = parent()
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
            tidy(directory)
            self.path, self._lock = _make(directory, id)
            with open(os.path.join(self.path, _OWNER), "wb") as file:
                file.write(os.fsencode(f"{root}\0{id}"))
            if transient:
                open(os.path.join(self.path, _TRANSIENT), "wb").close()
        except OSError as error:
            text = f"cannot make a directory in {directory}: {error.strerror}"
            raise HostError(text, code="no-dir") from error

    def write_config(self, value: dict[str, Any]) -> None:
        """Write config.json. Raises `HostError`."""
        state.replace_file(os.path.join(self.path, "config.json"), jsontext.dumps(value).encode())

    def write_ports(self, published: Sequence[str]) -> None:
        """Note the ports of the host that lead in, which config.json does not say. Raises `HostError`."""
        if published:
            state.replace_file(os.path.join(self.path, _PORTS), "\n".join(published).encode())

    def note_image(self, id: str) -> None:
        """That image is in use as long as this is there."""
        state.replace_file(os.path.join(self.path, _IMAGE), id.encode())

    def close(self) -> None:
        """From now on it is there as long as its container."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Remove it."""
        _remove_tree(self.path)
        self.close()


def _make(directory: str, id: str) -> tuple[str, int]:
    """A new directory and its lock."""
    while True:
        path = os.path.join(directory, f"{id[:40]}-{os.urandom(4).hex()}")
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        lock = _try_lock(path)
        if lock >= 0:
            return path, lock  # else somebody tidies it away, which had no lock yet


def _try_lock(path: str) -> int:
    """The lock of the place at `path`; -1 while somebody else has it, or when the place is gone."""
    try:
        lock = _open_lock(path)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(os.path.join(path, _LOCK))):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return -1


def _open_lock(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(os.path.join(path, _LOCK), flags, 0o600)


def _remove_tree(path: str) -> None:
    import shutil  # it brings in `re`, for which no start has to wait

    shutil.rmtree(path, ignore_errors=True)  # never follows links; the kernel leaves a work/ without rights


def read_ports(directory: str) -> list[ports.Port]:
    """The ports of the host that lead to the container whose bundle is `directory`; none for no place."""
    try:
        with open(os.path.join(directory, _PORTS), encoding="ascii") as file:
            return [ports.parse(line) for line in file.read().split()]
    except (OSError, ValueError):
        return []


def remove_of(directory: str) -> None:
    """Remove the place `directory`, the bundle of a container that is gone, if it is one."""
    if os.path.dirname(directory) == parent() and os.path.exists(os.path.join(directory, _OWNER)):
        _remove_tree(directory)


def images_in_use() -> set[str]:
    """The ids of the images that containers were made from."""
    directory, found = parent(), set()
    if os.path.isdir(directory):
        tidy(directory)
        for name in os.listdir(directory):
            try:
                with open(os.path.join(directory, name, _IMAGE), encoding="ascii") as file:
                    found.add(file.read())
            except OSError:
                continue  # it has none
    return found


def tidy(directory: str) -> None:
    """Remove what nobody makes and no container has."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not _is_wanted(path):
            with log.passing_over(f"tidy {path}", OSError):
                _remove_unlocked(path)


def _remove_unlocked(path: str) -> None:
    """Remove a place unless somebody has it locked: it may have been made a moment ago, or be in the making.
    Its maker must not get the lock until the whole of it is gone.
    """
    lock = _try_lock(path)
    if lock < 0:
        return
    try:
        if not _is_wanted(path):
            _remove_transient(path)
            _remove_tree(path)
    finally:
        os.close(lock)


def _container_of(path: str) -> str:
    """The state directory of its container, empty unless that says that this is its bundle."""
    try:
        directory = _named(path)
        return directory if str(state.read_state(directory)["bundle"]) == path else ""
    except (OSError, BufferzoneError, ValueError, KeyError):
        return ""


def _named(path: str) -> str:
    """The state directory that a place names; raises OSError or `NotFoundError`."""
    with open(os.path.join(path, _OWNER), "rb") as file:
        root, _, id = os.fsdecode(file.read()).partition("\0")
    return state.directory(root, id)


def _half_made(path: str) -> str:
    """The state directory of a transient place that says nothing: whoever held the place was killed while he
    made or removed it. Empty: there is none, or it is somebody's who lives.
    """
    try:
        directory = _named(path)
    except (OSError, BufferzoneError):
        return ""
    told = os.path.exists(os.path.join(directory, state.STATE)) or state.owner_alive(directory)
    return directory if os.path.exists(os.path.join(path, _TRANSIENT)) and not told else ""


def _is_wanted(path: str) -> bool:
    """Whether its container is there; one that is transient counts only while it lives."""
    directory = _container_of(path)
    if directory and os.path.exists(os.path.join(path, _TRANSIENT)):
        return state.owner_alive(directory)
    return bool(directory)


def _remove_transient(path: str) -> None:
    """Remove the container of a place that has ended with whoever held it."""
    directory = _container_of(path) or _half_made(path)
    if directory:
        with log.passing_over(f"remove {directory}", BufferzoneError):
            removal.remove(directory, os.path.basename(directory), force=True, program="")
