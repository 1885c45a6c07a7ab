"""A checkpoint: a whole VM in a directory. Written by `capture`, opened here to be restored.

    DIR/manifest.json  versions, the shape of the VM, its container, size and SHA-256 of each file
    DIR/memory         guest memory, sparse
    DIR/state          QEMU's device state (migration stream without memory)
    DIR/disk           the image of the root file system
    DIR/inventory.img  a line of text: podman looks for this name of CRIU's before it restores

The manifest is written last, by rename: without one there is no checkpoint. Memory that will be executed, and
what a container had in it: directory and files are the owner's alone. Nothing is used that does not match.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import asdict

from bufferzone import __version__
from bufferzone.errors import HostError
from bufferzone.sandbox.machine import from_fields, saved_key
from bufferzone.storage import ram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.sandbox.machine import Machine

FORMAT = 1
MANIFEST, MEMORY, STATE, DISK = "manifest.json", "memory", "state", "disk"
INVENTORY = "inventory.img"
_FILES = (MEMORY, STATE, DISK)
_MOST_MANIFEST = 1 << 20


class Saved:
    """An opened checkpoint; `memory_fd`, `state_fd` and `disk_fd` are read-only and its own."""

    def __init__(self, directory: str, manifest: dict[str, Any], fds: dict[str, int]) -> None:
        self.directory = directory
        self.machine: Machine = from_fields(manifest["machine"])
        self.container = str(manifest["container"])
        self.terminal = bool(manifest["terminal"])
        self.memory_fd, self.state_fd, self.disk_fd = (fds[name] for name in _FILES)
        self._memory = manifest["files"][MEMORY]

    def check_memory(self, fd: int) -> None:
        """Raise `HostError` unless the copy of the memory behind `fd` is what was written."""
        size, digest = self._memory
        if os.fstat(fd).st_size != size or ram.digest(fd, size) != digest:
            raise damaged(self.directory, f"{MEMORY} is not what was written")

    def close(self) -> None:
        """Close the files."""
        for fd in (self.memory_fd, self.state_fd, self.disk_fd):
            os.close(fd)


def open_saved(directory: str) -> Saved:
    """The checkpoint in `directory`, all of it checked but the memory, which is checked as it is copied.

    Raises `HostError`: damaged, of another version, or made on a machine that this one does not match.
    """
    manifest = read_manifest(directory)
    with ExitStack() as stack:
        fds = {}
        for name in _FILES:
            try:
                fd = _open_file(directory, name)
            except OSError as error:
                raise damaged(directory, f"{name}: {error.strerror}") from error
            stack.callback(os.close, fd)
            fds[name] = fd
            size, digest = manifest["files"][name]
            if os.fstat(fd).st_size != size or (name != MEMORY and ram.digest(fd, size) != digest):
                raise damaged(directory, f"{name} is not what was written")
        try:
            saved = Saved(directory, manifest, fds)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(directory, f"{MANIFEST}: {error}") from error
        if saved_key(saved.machine) != manifest["key"]:
            raise HostError(
                f"the checkpoint {directory} was made with another QEMU, firmware or CPU than this host has",
                code="checkpoint-mismatch",
            )
        stack.pop_all()
        return saved


def _open_file(directory: str, name: str) -> int:
    """A regular file of a directory that may come from elsewhere: a FIFO there holds up nobody. Raises
    OSError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(os.path.join(directory, name), flags)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


def read_manifest(directory: str) -> dict[str, Any]:
    """The manifest, shape and versions checked; raises `HostError`."""
    try:
        with open(_open_file(directory, MANIFEST), "rb") as file:
            value = json.loads(file.read(_MOST_MANIFEST))
        found = value["format"], value["version"]
        files = {name: (int(value["files"][name][0]), str(value["files"][name][1])) for name in _FILES}
        str(value["key"])
    except FileNotFoundError as error:
        raise HostError(
            f"no checkpoint in {directory}: {MANIFEST} is missing",
            hint="one that was not finished has none, and CRIU's cannot be restored in a VM",
            code="no-checkpoint",
        ) from error
    except OSError as error:
        raise damaged(directory, f"{MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise damaged(directory, f"{MANIFEST}: {error}") from error
    if found != (FORMAT, __version__):
        raise HostError(
            f"the checkpoint {directory} was made by version {found[1]}, this is {__version__}",
            code="checkpoint-mismatch",
        )
    return {**value, "files": files}


def write_manifest(directory: str, machine: Machine, facts: dict[str, Any]) -> None:
    """Make the files in `directory` a checkpoint: their sizes and hashes, atomically. Raises OSError."""
    files = {}
    for name in _FILES:
        fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            size = os.fstat(fd).st_size
            files[name] = (size, ram.digest(fd, size))
        finally:
            os.close(fd)
    with open(os.path.join(directory, INVENTORY), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(f"A virtual machine saved by bufferzone, see {MANIFEST}.\n".encode())
    value = {
        **facts,
        "format": FORMAT,
        "version": __version__,
        "machine": asdict(machine),
        "key": saved_key(machine),
        "files": files,
    }
    path = os.path.join(directory, MANIFEST)
    with open(f"{path}.new", "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(json.dumps(value, indent=1, sort_keys=True).encode())
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def discard(directory: str) -> None:
    """Remove what makes the directory a checkpoint, and its files."""
    for name in (MANIFEST, f"{MANIFEST}.new", INVENTORY, *_FILES):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))


def damaged(directory: str, reason: str) -> HostError:
    """The error for a checkpoint that must not be used."""
    return HostError(f"the checkpoint {directory} is damaged: {reason}", code="checkpoint-damaged")
