"""A checkpoint that is being written, beside an older one in the same directory, or nothing.

The files of every checkpoint have names of their own, and the manifest, which names them, is replaced by one
rename when all of them are on the disk. So whatever is killed, and if the machine itself stops: the directory
holds the older checkpoint or the new one, whole, or none. Only files with names that are made here are ever
removed. Source: rename(2), fsync(2) (a directory's entries need an fsync of their own), flock(2).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

from bufferzone import __version__, log
from bufferzone.errors import HostError
from bufferzone.linux.ignoring import ignoring
from bufferzone.record import asdict
from bufferzone.snapshot import checkpoint_dir, seal
from bufferzone.storage import ram
from bufferzone.vm.shape import saved_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.vm.shape import VmShape

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_MANIFEST_NEW = f"{checkpoint_dir.OURS}{checkpoint_dir.MANIFEST}.new"
_INVENTORY_TEXT = b"A virtual machine saved by bufferzone, see manifest.json.\n"


class Draft:
    """`fds` are the new files by kind, empty. Leaving the context without `publish` removes them.

    Raises OSError, its text for a person: EBUSY while another checkpoint is being written there, EEXIST where
    files of somebody else have the names that a checkpoint must have.
    """

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, 0o700, exist_ok=True)
        self._directory = directory
        self._at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.fds: dict[str, int] = {}
        self._names: dict[str, str] = {}
        try:
            _lock(self._at)
            _tidy(self._at, self._present())
            token = os.urandom(8).hex()
            for kind in checkpoint_dir.KINDS:
                name = f"{checkpoint_dir.OURS}{kind}-{token}"
                self.fds[kind] = os.open(name, _NEW, 0o600, dir_fd=self._at)
                self._names[kind] = name
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds.values():
            os.close(fd)
        for name in (*self._names.values(), _MANIFEST_NEW) if self._names else ():
            _remove(self._at, name)
        os.close(self._at)  # and with it the lock

    def publish(self, shape: VmShape, facts: dict[str, Any], digests: dict[str, str], key: bytes) -> None:
        """Make it the directory's checkpoint, sealed with `key`; the older one goes. `digests` by kind, where
        known already.

        Raises OSError or `HostError`; then it is none, and the older one is as it was.
        """
        files = {}
        for kind, fd in self.fds.items():
            os.fsync(fd)
            size = os.fstat(fd).st_size
            files[kind] = (self._names[kind], size, digests.get(kind) or ram.digest(fd, size))
        value = {
            **facts,
            "format": checkpoint_dir.FORMAT,
            "version": __version__,
            "shape": asdict(shape),
            "key": saved_key(shape),
            "files": files,
        }
        value[seal.FIELD] = seal.of(value, key)
        self._write(_MANIFEST_NEW, json.dumps(value, indent=1, sort_keys=True).encode())
        try:
            os.stat(checkpoint_dir.INVENTORY, dir_fd=self._at, follow_symlinks=False)
        except FileNotFoundError:
            self._write(checkpoint_dir.INVENTORY, _INVENTORY_TEXT)
        os.fsync(self._at)
        os.rename(_MANIFEST_NEW, checkpoint_dir.MANIFEST, src_dir_fd=self._at, dst_dir_fd=self._at)
        kept, self._names = set(self._names.values()), {}
        os.fsync(self._at)
        _tidy(self._at, kept)

    def _write(self, name: str, data: bytes) -> None:
        """A new file with `data`, or none: what is there in part would stand in the way of the next."""
        self._unlink(name)
        try:
            with open(os.open(name, _NEW, 0o600, dir_fd=self._at), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._unlink(name)
            raise

    def _unlink(self, name: str) -> None:
        with ignoring(errno.ENOENT):
            os.unlink(name, dir_fd=self._at)

    def _present(self) -> set[str]:
        """The files of the checkpoint that is there. Raises OSError for what is there and not ours."""
        if not _begins(self._at, checkpoint_dir.INVENTORY, _INVENTORY_TEXT):
            raise OSError(errno.EEXIST, f"the directory has a CRIU checkpoint: {checkpoint_dir.INVENTORY}")
        try:
            return set(checkpoint_dir.names(checkpoint_dir.raw_manifest(self._directory)))
        except FileNotFoundError:
            return set()
        except (OSError, HostError) as error:
            text = f"{checkpoint_dir.MANIFEST} there is no checkpoint's of ours"
            raise OSError(errno.EEXIST, text) from error


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(errno.EBUSY, "another checkpoint is being written there") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF):
            raise  # else a network file system without locks of directories


def _begins(at: int, name: str, text: bytes) -> bool:
    """Whether a file begins with `text`, or is not there."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with open(fd, "rb") as file:
        return file.read(len(text)) == text


def _tidy(at: int, kept: set[str]) -> None:
    """Remove files of other checkpoints: older ones, and those that were never finished."""
    for name in os.listdir(at):
        if (checkpoint_dir.is_file_name(name) or name == _MANIFEST_NEW) and name not in kept:
            _remove(at, name)


def _remove(at: int, name: str) -> None:
    """Remove a file that is no part of a checkpoint: one that stays takes room and does no harm."""
    with log.passing_over(f"remove {name}", OSError), ignoring(errno.ENOENT):
        os.unlink(name, dir_fd=at)
