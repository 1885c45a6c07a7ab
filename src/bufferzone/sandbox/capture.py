"""Saves a running VM into a directory, from which `saved` restores it; the VM goes on, or ends with it.

The container is frozen in its guest before, and the agent's channel is silent: nothing is half way between
guest and host when the VM stops. A VM that goes on stands still while its devices are saved and its memory is
copied within memory; the copy goes to disk afterwards. Source: QEMU 7.2 docs/devel/migration.rst.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack

from bufferzone.errors import StateError
from bufferzone.sandbox import saved
from bufferzone.storage import ram
from bufferzone.vmm import snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from bufferzone.sandbox.agent import AgentClient
    from bufferzone.sandbox.machine import Machine
    from bufferzone.sandbox.network import Network
    from bufferzone.sandbox.rootdisk import RootDisk
    from bufferzone.storage.share import Tree
    from bufferzone.vmm.driver import Vmm

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Capture:
    """What of a sandbox is needed to save it. Owns nothing."""

    def __init__(
        self,
        vmm: Vmm,
        agent_client: AgentClient,
        network: Network,
        machine: Machine,
        memory_fd: int,
        disk: RootDisk | None,
        tree: Tree | None,
    ) -> None:
        self._vmm, self._agent, self._network = vmm, agent_client, network
        self._machine, self._memory_fd, self._disk, self._tree = machine, memory_fd, disk, tree
        self.stopped_s = 0.0  # how long the VM stood still, the last time

    def check(self) -> None:
        """Raise `StateError` when this VM cannot be saved."""
        if self._disk is None:
            raise StateError(
                "its root file system is shared with virtiofs, which QEMU cannot save",
                hint="create it with --annotation bufferzone.rootfs=block and without volumes",
                code="not-saveable",
            )
        if self._tree is not None:
            raise StateError(
                "its volumes are shared with virtiofs, which QEMU cannot save",
                hint="create it without volumes",
                code="not-saveable",
            )
        if self._network.is_joined:  # restored, QEMU 7.2 dies by SIGSEGV when the guest's NIC starts again
            raise StateError(
                "it has a network, and QEMU does not survive to restore its NIC",
                hint="create it with --network none",
                code="not-saveable",
            )

    def save(
        self,
        directory: str,
        facts: dict[str, Any],
        *,
        still: AbstractContextManager[None],
        ended: Callable[[], None] | None,
    ) -> None:
        """Write the checkpoint. `ended` is called as soon as it is complete, while the VM still stands; None:
        the VM goes on. After a failure the VM goes on and there is no checkpoint.

        While `still` is entered, the container is frozen. Raises OSError, `HostError`, `VmmError` or
        `StateError`.
        """
        self.check()
        os.makedirs(directory, 0o700, exist_ok=True)
        saved.discard(directory)
        try:
            self._save(directory, facts, still, ended)
        except BaseException:
            saved.discard(directory)
            raise

    def _save(
        self,
        directory: str,
        facts: dict[str, Any],
        still: AbstractContextManager[None],
        ended: Callable[[], None] | None,
    ) -> None:
        with ExitStack() as stack:
            state_fd = _create(stack, directory, saved.STATE)
            memory_fd = _create(stack, directory, saved.MEMORY)
            size = self._machine.memory_mib << 20
            os.ftruncate(memory_fd, size)
            self._copy_disk(stack, directory)
            with still, self._agent.held():
                began = time.monotonic()
                complete = False
                try:
                    snapshot.save(self._vmm, state_fd)
                    source = self._memory_fd
                    if ended is None:
                        source = self._copy_memory(stack, size)
                    else:
                        ram.pack(source, memory_fd)
                        saved.write_manifest(directory, self._machine, facts)
                        complete = True
                        ended()
                finally:
                    if not complete:
                        snapshot.resume(self._vmm)
                        self.stopped_s = time.monotonic() - began
            if ended is None:
                ram.pack(source, memory_fd)
                saved.write_manifest(directory, self._machine, facts)

    def _copy_memory(self, stack: ExitStack, size: int) -> int:
        """The memory as it is now, in memory: the shortest way to let the guest go on."""
        fd = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        ram.copy(self._memory_fd, fd)
        return fd

    def _copy_disk(self, stack: ExitStack, directory: str) -> None:
        """The image of the root file system, which does not change."""
        assert self._disk is not None
        _, source = self._disk.image()
        target = _create(stack, directory, saved.DISK)
        with open(f"/proc/self/fd/{source}", "rb") as image, open(target, "wb", closefd=False) as copy:
            shutil.copyfileobj(image, copy, 1 << 20)


def _create(stack: ExitStack, directory: str, name: str) -> int:
    fd = os.open(os.path.join(directory, name), _NEW, 0o600)
    stack.callback(os.close, fd)
    return fd
