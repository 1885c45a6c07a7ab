"""A VM of Firecracker: one process, its API, its console.

What it cannot do is in `FEATURES`. Refuses: restarting. One `Firecracker` is one process; when it is gone, it
is gone.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

from bufferzone import vmmfeatures, vmmstore
from bufferzone.errors import VmmError
from bufferzone.vmm.explain import explain
from bufferzone.vmm.firecracker import figures, requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import Any, NoReturn

    from bufferzone.model import Share, VmSpec
    from bufferzone.spawn import Child
    from bufferzone.vmm.console import Reader
    from bufferzone.vmm.firecracker.api import Api
    from bufferzone.vmm.firecracker.place import Place
    from bufferzone.vmm.firecracker.taps import LentTaps

FEATURES = vmmfeatures.BY_NAME["firecracker"]
#: seconds that saving may take, which writes all of a guest's memory, and a guest that goes on until it calls
_SAVE_S, _CALL_S = 300.0, 60.0
#: console lines looked at for an explanation: a panic's call trace and registers come after its one line
_TRACE_LINES = 120


class Firecracker:
    """A running Firecracker, see `vmm.interface.Vmm`. Owns the process, the place, the API and the logs.

    `lent` is what the NICs of `spec` attach to. `words` and `counted` read its log and its
    metrics, `console` the guest's serial port, on which its own last words come too.
    """

    features = FEATURES

    def __init__(
        self,
        child: Child,
        place: Place,
        api: Api,
        spec: VmSpec,
        lent: LentTaps,
        *,
        console: Reader,
        words: Reader,
        counted: Reader,
    ) -> None:
        self.child = child
        self.agent: socket.socket | None = None
        self.version = FEATURES.name
        self._place, self._api, self._spec, self._lent = place, api, spec, lent
        self._expects_call = False
        self._console, self._words, self._counted = console, words, counted

    @property
    def pid(self) -> int:
        """The process id in the host's namespace."""
        return self.child.pid

    def fileno(self) -> int:
        """The pidfd: readable when Firecracker has ended."""
        return self.child.pidfd

    def watch(self) -> None:
        """Start the threads that drain console, log and metrics."""
        for reader in (self._console, self._words, self._counted):
            reader.start()

    def greet(self, timeout_s: float = 20.0) -> None:
        """Wait until Firecracker answers; unless a saved VM is to be loaded, have it boot, and wait for the
        agent's call. Raises VmmError: what it refused, that it is another version, or the explained failure.
        """
        end = time.monotonic() + timeout_s
        with self._explained(f"start {FEATURES.label}", timeout_s):
            self._meet(timeout_s)
            if self._spec.mapped_memory >= 0:
                return
            self._place.listen()
            for method, path, body in requests.boot(self._spec, self._lent.names):
                self._api.call(method, path, body, timeout_s=_left(end))
            self._lent.tie(self.child)
        with self._explained("boot the guest", timeout_s):
            self.agent = self._place.await_call(_left(end), self.child.pidfd)

    def _meet(self, timeout_s: float) -> None:
        """Its API answers, and it is a version that is known."""
        self._api.connect(timeout_s, self.child.pidfd)
        self._place.release_writers()
        answer = self._api.call("GET", "/version", timeout_s=timeout_s)
        version = answer.get("firecracker_version") if isinstance(answer, dict) else None
        found = str(version)[:40]
        if problem := vmmstore.unsupported(FEATURES.name, found):
            raise VmmError(problem, hint=vmmstore.hint(FEATURES.name), code="vmm-version")
        self.version = f"{FEATURES.name} {found}"

    @contextmanager
    def _explained(self, phase: str, timeout_s: float) -> Iterator[None]:
        """What it refused says so itself; all else is explained."""
        try:
            yield
        except VmmError as error:
            if error.code.startswith("vmm-") and self.child.wait_exit(0) is None:
                raise
            raise self.failure(phase, waited_s=timeout_s) from error

    def failure(self, phase: str, *, waited_s: float | None = None) -> VmmError:
        """The explanation of what went wrong in `phase`, from exit status, console, log and metrics."""
        # a closed channel announces an end that may be milliseconds away
        status = self.child.wait_exit(0.5)
        if status is not None:
            self._place.release_writers()
            for reader in (self._console, self._words, self._counted):
                reader.join()
        counted = figures.last(self._counted.log.tail(1, most=figures.MOST_LINE))
        return explain(
            phase,
            program=FEATURES.label,
            status=figures.signal_of(status),
            reset=figures.was_reset(counted),
            console=self._console.log.tail(_TRACE_LINES),
            stderr=self._words.log.tail(),
            waited_s=waited_s,
            denied=self.child.denied,
        )

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """Firecracker's exit status, negative for a signal; None when `timeout_s` passed first."""
        return self.child.wait_exit(timeout_s)

    def insert_disk(self, name: str, fd: int) -> None:
        """Show the image behind `fd` in the slot `name`. Raises `VmmError`, `HostError`."""
        self._place.show(name, fd)
        self._call(requests.insert(name, self._spec.rates))

    def resume(self) -> None:
        """Let the guest run; one that was loaded or saved calls again: its connection did not survive."""
        self._call(requests.run(True))
        if self._expects_call:
            self._expects_call = False
            try:
                self.agent = self._place.await_call(_CALL_S, self.child.pidfd)
            except VmmError as error:
                # where saving failed before it came to the vsock, the guest has no reason to call
                if self.agent is None or error.code != "agent-timeout":
                    raise
            self._lent.settle()

    def stop(self) -> None:
        """Let the guest stand still."""
        self._call(requests.run(False))

    def load(self, state_fd: int) -> None:
        """Load a saved VM, its memory mapped from the file of `spec`; it does not run yet. Raises `VmmError`,
        `HostError`."""
        self._place.write_state(state_fd)
        self._place.listen()
        self._expects_call = True
        for request in (requests.load(self._spec, self._lent.names), *requests.limit(self._spec)):
            self._call(request)
        self._lent.tie(self.child)

    def save(self, state_fd: int) -> None:
        """Stop the guest, write its devices to `state_fd`, its memory to the file of `spec`. The agent's
        connection ends with that: the guest calls again when it is resumed, saved or not. Raises `VmmError`,
        OSError.
        """
        self.stop()
        self._place.listen()
        self._expects_call = True
        method, path, body = requests.save()
        self._api.call(method, path, body, timeout_s=_SAVE_S)
        self._place.read_state(state_fd)

    def squeezed(self, *, memory: int, free: int) -> AbstractContextManager[None]:
        """Raises `VmmError`."""
        self._refuse("take memory from a guest")

    def plug_share(self, share: Share) -> None:
        """Raises `VmmError`."""
        self._refuse("plug a share")

    def plug_nic(self, tap_fd: int, *, number: int, mac: str) -> None:
        """Raises `VmmError`."""
        self._refuse("plug a NIC")

    def _call(self, request: requests.Request) -> Any:
        method, path, body = request
        return self._api.call(method, path, body)

    def _refuse(self, what: str) -> NoReturn:
        raise VmmError(f"{FEATURES.label} cannot {what}", code="vmm-feature")

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def close(self) -> None:
        """Kill, reap, close everything. May be called twice."""
        self.child.close()
        self._lent.take_back()
        self._api.close()
        if self.agent is not None:
            self.agent.close()
        self._place.close()
        for reader in (self._console, self._words, self._counted):
            reader.join()

    def __enter__(self) -> Firecracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
