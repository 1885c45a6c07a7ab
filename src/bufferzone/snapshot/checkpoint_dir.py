"""A checkpoint: a whole VM in a directory. `checkpoint` writes it through `checkpoint_writer`; it is
opened here to be restored.

    DIR/manifest.json           versions, VM's shape, its container; name, size and SHA-256 of each file; seal
    DIR/bufferzone-memory-HEX   guest memory, sparse
    DIR/bufferzone-state-HEX    QEMU's device state (migration stream without memory)
    DIR/bufferzone-disk-HEX     the image of the root file system
    DIR/inventory.img           a line of text: podman looks for this name of CRIU's before it restores

HEX differs from checkpoint to checkpoint. The manifest is replaced last, by rename: without one there is no
checkpoint. Directory and files are accessible to the owner alone, because the memory in them is executed
again and holds what the container had in it. A file that does not match its digest is not used.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import ExitStack

from bufferzone import __version__
from bufferzone.errors import HostError
from bufferzone.snapshot import manifest as form
from bufferzone.snapshot import seal
from bufferzone.snapshot.manifest import DISK, KINDS, MEMORY, OURS, STATE, is_file_name
from bufferzone.storage import ram
from bufferzone.vm.shape import from_fields, saved_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.vm.shape import VmShape

__all__ = ["DISK", "KINDS", "MEMORY", "OURS", "STATE", "Checkpoint", "is_file_name", "open_checkpoint"]

FORMAT = 4
MANIFEST = "manifest.json"
INVENTORY = "inventory.img"
_MOST_MANIFEST = 1 << 20


class Checkpoint:
    """An opened checkpoint, a `vm.saved.SavedVm`; its descriptors are read-only and its own."""

    noun = "checkpoint"
    carries_share = is_mappable = False

    def __init__(self, directory: str, manifest: dict[str, Any], fds: dict[str, int]) -> None:
        self.directory = directory
        self.shape: VmShape = from_fields(manifest["shape"])
        self.container: str = manifest["container"]
        self.terminal: bool = manifest["terminal"]
        self.memory_fd, self.state_fd, self.disk_fd = (fds[name] for name in KINDS)
        self.spec: dict[str, str] = manifest["spec"]
        self._memory = manifest["files"][MEMORY]

    def check_memory(self, fd: int) -> None:
        """Raise `HostError` unless the copy of the memory behind `fd` is what was written."""
        name, size, digest = self._memory
        if os.fstat(fd).st_size != size or ram.digest(fd, size) != digest:
            raise damaged(self.directory, f"{name} is not what was written")

    def close(self) -> None:
        """Close the files."""
        for fd in (self.memory_fd, self.state_fd, self.disk_fd):
            os.close(fd)


def open_checkpoint(directory: str, settings: Settings) -> Checkpoint:
    """The checkpoint in `directory`, all of it checked but the memory, which is checked as it is copied.

    Raises `HostError`: damaged, of another version, made on a machine that this one does not match, or by
    somebody from whom the settings take none.
    """
    manifest = read_manifest(directory)
    while True:
        try:
            return _open(directory, manifest, settings)
        except HostError:
            before, manifest = manifest, read_manifest(directory)
            if before == manifest:
                raise  # else it was replaced by a newer one while we looked


def _open(directory: str, manifest: dict[str, Any], settings: Settings) -> Checkpoint:
    with ExitStack() as stack:
        fds = {}
        for kind in KINDS:
            name, size, digest = manifest["files"][kind]
            try:
                fd = _open_file(directory, name)
            except OSError as error:
                raise damaged(directory, f"{name}: {error.strerror}") from error
            stack.callback(os.close, fd)
            fds[kind] = fd
            if os.fstat(fd).st_size != size or (kind != MEMORY and ram.digest(fd, size) != digest):
                raise damaged(directory, f"{name} is not what was written")
        saved = Checkpoint(directory, manifest, fds)
        if saved_key(saved.shape) != manifest["key"]:
            raise HostError(
                f"the checkpoint {directory} was made with another VMM, firmware or CPU than this host has",
                code="checkpoint-mismatch",
            )
        seal.check(manifest, directory, settings)  # last, for what does not fit says more
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
    """The manifest, each field of it and the version checked; raises `HostError`."""
    try:
        value = raw_manifest(directory)
    except FileNotFoundError as error:
        raise HostError(
            f"no checkpoint in {directory}: {MANIFEST} is missing",
            hint="one that was not finished has none, and CRIU's cannot be restored in a VM",
            code="no-checkpoint",
        ) from error
    except OSError as error:
        raise damaged(directory, f"{MANIFEST}: {error.strerror}") from error
    found = value["format"], value["version"]
    if found != (FORMAT, __version__):
        raise HostError(
            f"the checkpoint {directory} was made by version {found[1]}, this is {__version__}",
            code="checkpoint-mismatch",
        )
    try:
        form.check(value)
    except ValueError as error:
        raise damaged(directory, f"{MANIFEST}: {error}") from error
    return value


def raw_manifest(directory: str) -> dict[str, Any]:
    """The manifest of any version, hardly checked; raises OSError or `HostError`."""
    try:
        with open(_open_file(directory, MANIFEST), "rb") as file:
            value = json.loads(file.read(_MOST_MANIFEST))
        form.check_head(value)
    except RecursionError as error:
        raise damaged(directory, f"{MANIFEST}: nested too deeply") from error
    except ValueError as error:
        raise damaged(directory, f"{MANIFEST}: {error}") from error
    return dict(value)


def names(manifest: dict[str, Any]) -> list[str]:
    """The names of the files of a checkpoint of any version."""
    entries = manifest["files"].values()
    return [entry[0] for entry in entries if isinstance(entry, list) and entry and isinstance(entry[0], str)]


def damaged(directory: str, reason: str) -> HostError:
    """The error for a checkpoint that must not be used."""
    return HostError(f"the checkpoint {directory} is damaged: {reason}", code="checkpoint-damaged")
