"""A VM of QEMU: one process, its control channel, its console.

Refuses: a monitor on a socket path, daemonizing, restarting. One `Qemu` is one process; when it is gone, it
is gone.
"""

from __future__ import annotations

from bufferzone import vmmfeatures
from bufferzone.errors import VmmError
from bufferzone.vmm.explain import explain
from bufferzone.vmm.qemu import migration, plugging

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from contextlib import AbstractContextManager

    from bufferzone.model import Share
    from bufferzone.spawn import Child
    from bufferzone.vmm.console import Reader
    from bufferzone.vmm.qemu.qmp import Qmp

FEATURES = vmmfeatures.BY_NAME["qemu"]
#: console lines looked at for an explanation: a panic's call trace and registers come after its one line
_TRACE_LINES = 120


class Qemu:
    """A running QEMU, see `vmm.interface.Vmm`. Owns the process, the channels and the stderr log.

    `qmp` may not be used before `greet`.
    """

    features = FEATURES

    def __init__(
        self, child: Child, qmp: Qmp, agent: socket.socket, *, stderr: Reader, console: Reader
    ) -> None:
        self.child = child
        self.qmp = qmp
        self.agent = agent
        self.version = FEATURES.name
        self._stderr = stderr
        self._console = console

    @property
    def pid(self) -> int:
        """The process id in the host's namespace."""
        return self.child.pid

    def fileno(self) -> int:
        """The pidfd: readable when QEMU has ended."""
        return self.child.pidfd

    def watch(self) -> None:
        """Start the threads that drain console and stderr."""
        self._console.start()
        self._stderr.start()

    def greet(self, timeout_s: float = 20.0) -> None:
        """Wait until QEMU answers on its control channel; raises the explained VmmError if it does not."""
        try:
            self.version = f"{FEATURES.name} {self.qmp.greet(timeout_s)}"
        except VmmError as error:
            raise self.failure(f"start {FEATURES.label}", waited_s=timeout_s) from error

    def failure(self, phase: str, *, waited_s: float | None = None) -> VmmError:
        """The explanation of what went wrong in `phase`, from the exit status, the console and stderr."""
        self.qmp.pump()
        # a closed control channel or a panic announces an end that may be milliseconds away
        status = self.child.wait_exit(0.5)
        if status is not None:
            self._stderr.join()
            self._console.join()
            self.qmp.pump()  # its last words came while we waited
        return explain(
            phase,
            program=FEATURES.label,
            status=status,
            panicked=self.qmp.panic(),
            reset=self.qmp.reset(),
            console=self.console_tail(_TRACE_LINES),
            stderr=self.stderr_tail(),
            waited_s=waited_s,
            denied=self.child.denied,
        )

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """QEMU's exit status, negative for a signal; None when `timeout_s` passed first."""
        return self.child.wait_exit(timeout_s)

    def console_tail(self, lines: int = 20) -> list[str]:
        """The last console lines, printable."""
        return self._console.log.tail(lines)

    def stderr_tail(self, lines: int = 20) -> list[str]:
        """The last lines QEMU printed, printable."""
        return self._stderr.log.tail(lines)

    def load(self, state_fd: int) -> None:
        """Load the devices of a saved VM into one that was started for that; it does not run yet."""
        migration.load(self.qmp, state_fd, self._last_words)

    def plug_share(self, share: Share) -> None:
        """Plug a share, whose character device is there from the start, before the guest runs."""
        plugging.plug_share(self.qmp, share)

    def insert_disk(self, name: str, fd: int) -> None:
        """Let the slot `name` show the image behind `fd`."""
        plugging.insert_disk(self.qmp, name, fd)

    def plug_nic(self, tap_fd: int, *, number: int, mac: str) -> None:
        """Plug a NIC with the open tap as its back end, into a running VM."""
        plugging.plug_nic(self.qmp, tap_fd, number=number, mac=mac)

    def resume(self) -> None:
        """Let the guest run."""
        self.qmp.execute("cont")

    def stop(self) -> None:
        """Let the guest stand still."""
        self.qmp.execute("stop")

    def save(self, state_fd: int) -> None:
        """Stop the guest and write its devices to `state_fd`."""
        self.stop()
        migration.save(self.qmp, state_fd, self._last_words)

    def squeezed(self, *, memory: int, free: int) -> AbstractContextManager[None]:
        """Take free memory out of the memory file, see `migration`."""
        return migration.squeezed(self.qmp, memory=memory, free=free)

    def _last_words(self) -> list[str]:
        return self.stderr_tail(3)

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def close(self) -> None:
        """Kill, reap, close everything. May be called twice."""
        self.child.close()
        self.qmp.close()
        self.agent.close()
        self._stderr.join()
        self._console.join()

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
