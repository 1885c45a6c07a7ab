"""What a VMM must be able to do, as two protocols: `Driver` makes VMs, `Vmm` is one of them.

What makes, runs and saves sandboxes knows these and no VMM's name; `audit` and `bench`, which look at
processes from outside, do. What one cannot do is in its `Features`, which `sandbox/plan` reads before a boot,
and others where there is another way. Imported for types alone. Refuses: anything that
one VMM alone could mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import socket
    from contextlib import AbstractContextManager

    from bufferzone.errors import VmmError
    from bufferzone.model import Confinement, Features, Share, VmSpec


class Vmm(Protocol):
    """One VM, started or about to be loaded. Owns its process and channels; `close` gives them back.

    Calls raise `VmmError` when the VMM refuses, does not answer, or is gone. None but `watch`, `failure`,
    `wait_exit`, `kill` and `close` may be used before `greet`. Threads start with `watch`, after all helpers
    were forked.
    """

    @property
    def features(self) -> Features:
        """What it can do: its driver's `FEATURES`."""

    @property
    def agent(self) -> socket.socket | None:
        """The channel to the guest's agent: a connected stream socket, whoever made it; closed by `close`.
        None where the guest has to call first: until `greet` of a VM that boots, `resume` of a loaded one.
        """

    @property
    def version(self) -> str:
        """Name and version, such as `qemu 7.2.22`; complete after `greet`."""

    @property
    def pid(self) -> int:
        """The VMM's process, in the host's namespace."""

    def fileno(self) -> int:
        """The pidfd: readable when the VMM has ended."""

    def watch(self) -> None:
        """Start the threads that drain console and stderr."""

    def greet(self, timeout_s: float = 20.0) -> None:
        """Wait until the VMM can be talked to; raises the explained `VmmError` if it cannot."""

    def load(self, state_fd: int) -> None:
        """Load a saved VM's devices into one made by `Driver.restore`; it does not run yet."""

    def plug_share(self, share: Share) -> None:
        """Plug a share of the `VmSpec` into a loaded VM that was saved without it, before it runs."""

    def insert_disk(self, name: str, fd: int) -> None:
        """Show the image behind `fd`, read-only, in the disk slot `name`; the caller keeps its descriptor."""

    def plug_nic(self, tap_fd: int, *, number: int, mac: str) -> None:
        """Plug one more NIC into a running VM, the `number`th after the first; the caller keeps `tap_fd`."""

    def resume(self) -> None:
        """Let the guest run. `agent` may be another one then, where saving and loading end the connection."""

    def stop(self) -> None:
        """Let the guest stand still."""

    def save(self, state_fd: int) -> None:
        """Stop the guest and write its devices to `state_fd`; the rest is in the memory file. Raises OSError
        too, when `state_fd` does not take them."""

    def squeezed(self, *, memory: int, free: int) -> AbstractContextManager[None]:
        """While entered, `free` bytes of the guest's `memory` are out of the memory file."""

    def failure(self, phase: str, *, waited_s: float | None = None) -> VmmError:
        """The explanation of what went wrong in `phase`, of all that is known here."""

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """The exit status, negative for a signal; None when `timeout_s` passed first."""

    def kill(self) -> None:
        """SIGKILL."""

    def close(self) -> None:
        """Kill, reap, close everything. May be called twice."""


class Driver(Protocol):
    """Makes VMs of one kind. A module with these names is one."""

    @property
    def FEATURES(self) -> Features:
        """What its VMs can do."""

    def start(self, spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> Vmm:
        """Start a VM that boots, in its jail; what its console says goes to `console_log_fd` (-1: nowhere).

        The caller closes its copies of the descriptors in `spec`; `console_log_fd` is taken over. Raises
        `HostError`; then nothing runs.
        """

    def restore(self, spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> Vmm:
        """Start a VMM for a saved VM: next are `greet`, `load` and `resume`, and meanwhile `spec.memory` is
        filled. Else as `start`."""

    def fingerprint(self, spec: VmSpec) -> dict[str, Any]:
        """Everything of program and machine that two VMs like `spec` must share to be restored from one
        another, as JSON values. Raises `HostError` when the VMM is not installed."""
