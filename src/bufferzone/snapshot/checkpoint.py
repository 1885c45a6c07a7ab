"""Saves a running VM into a directory, from which `checkpoint_dir` restores it; the VM goes on,
or ends with it.

The container is frozen in its guest before, and the agent's channel is silent: nothing is half way between
guest and host when the VM stops. A VM that goes on stands still while its devices are saved and its memory is
copied within memory, outside of its cgroup; the copy goes to disk afterwards.
Source: QEMU 7.2 docs/devel/migration.rst.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager

from bufferzone.errors import StateError, VmmError
from bufferzone.log import passing_over
from bufferzone.snapshot import checkpoint_dir
from bufferzone.snapshot.checkpoint_writer import Draft
from bufferzone.snapshot.copier import Saver
from bufferzone.vm.hello import set_clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, Protocol

    from bufferzone.vm.launch import RunningVm

    class Withdrawable(Protocol):
        """A network of which the guest can be rid for a moment."""

        @property
        def not_saveable(self) -> str:
            """Why a VM with this network cannot be saved; empty when it can."""

        def withdrawn(self) -> AbstractContextManager[None]:
            """While entered, no NIC of the guest has a driver."""

    class Disk(Protocol):
        """What the guest's root file system is on."""

        def image(self) -> tuple[str, int]:
            """Its kind, and a descriptor that stays its own."""


_CLOCK_S = 10.0


class Capture:
    """Saves `vm`, with its network and the disk that its root file system is on, if any. Owns nothing."""

    def __init__(self, vm: RunningVm, network: Withdrawable, disk: Disk | None) -> None:
        self._vm, self._network, self._disk = vm, network, disk
        self.stopped_s = 0.0  # how long the VM stood still, the last time

    def check(self) -> None:
        """Raise `StateError` when this VM cannot be saved."""
        features = self._vm.vmm.features
        if not features.snapshot:
            raise StateError(f"{features.label} cannot save a VM", code="not-saveable")
        if self._disk is None:
            raise StateError(
                f"its root file system is shared with virtiofs, which {features.label} cannot save",
                hint="create it with --annotation bufferzone.rootfs=block and without volumes",
                code="not-saveable",
            )
        if self._vm.tree is not None:
            raise StateError(
                f"its volumes are shared with virtiofs, which {features.label} cannot save",
                hint="create it without volumes",
                code="not-saveable",
            )
        if problem := self._network.not_saveable:
            raise StateError(problem, hint="create it with one network or none", code="not-saveable")

    def save(
        self,
        directory: str,
        facts: dict[str, Any],
        key: bytes,
        *,
        still: AbstractContextManager[None],
        ended: Callable[[], None] | None,
    ) -> None:
        """Write the checkpoint, sealed with `key`. `ended` is called as soon as it is complete, while the VM
        still stands; None: the VM goes on. After a failure the VM goes on, and an older checkpoint in the
        directory is as it was.

        While `still` is entered, the container is frozen. Raises OSError, `HostError`, `VmmError` or
        `StateError`.
        """
        self.check()
        assert self._disk is not None
        _, disk_fd = self._disk.image()
        with ExitStack() as stack:
            saver = stack.enter_context(Saver())
            draft = stack.enter_context(Draft(directory))
            digests = {
                checkpoint_dir.DISK: saver.pack(
                    disk_fd, _sized(draft.fds[checkpoint_dir.DISK], _size(disk_fd))
                )
            }
            memory_fd = _sized(draft.fds[checkpoint_dir.MEMORY], self._vm.shape.memory_mib << 20)
            copied = -1
            with still, self._on_time(), self._network.withdrawn(), self._vm.agent.held():
                began = time.monotonic()
                complete = False
                try:
                    self._vm.vmm.save(draft.fds[checkpoint_dir.STATE])
                    if ended is None and saver.outside:
                        copied = self._copy_memory(stack, saver)
                    else:  # no room for a second copy, or no haste
                        digests[checkpoint_dir.MEMORY] = saver.pack(self._vm.memory_fd, memory_fd)
                    if ended is not None:
                        draft.publish(self._vm.shape, facts, digests, key)
                        complete = True
                        ended()
                finally:
                    if not complete:
                        self._vm.vmm.resume()
                        self._vm.agent.attach(self._vm.vmm.agent)  # another, where saving ended it
                        self.stopped_s = time.monotonic() - began
            if copied >= 0:
                digests[checkpoint_dir.MEMORY] = saver.pack(copied, memory_fd)
            if ended is None:
                draft.publish(self._vm.shape, facts, digests, key)

    @contextmanager
    def _on_time(self) -> Iterator[None]:
        """On leaving, the wall clock of a VM that stood still meanwhile is set: it is late by that time."""
        try:
            yield
        finally:
            with passing_over("set the clock of a saved VM", VmmError):  # it may have ended
                set_clock(self._vm.agent, _CLOCK_S)

    def _copy_memory(self, stack: ExitStack, saver: Saver) -> int:
        """The memory as it is now, in memory: the shortest way to let the guest go on."""
        fd = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        saver.copy(self._vm.memory_fd, _sized(fd, self._vm.shape.memory_mib << 20))
        return fd


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


def _sized(fd: int, size: int) -> int:
    os.ftruncate(fd, size)
    return fd
