"""A container that runs, in a sandbox: what Python programs do with it. A sandbox has at least one."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref

from bufferzone import oci, state
from bufferzone.errors import NotFoundError
from bufferzone.library import listing, wishes
from bufferzone.library.connections import Connections
from bufferzone.library.files import Files
from bufferzone.library.process import Process
from bufferzone.library.process_object import Wanted, process_object
from bufferzone.library.run import Limits, run
from bufferzone.library.values import Info, Result, Stats
from bufferzone.wire import agent, shim, task
from bufferzone.workload import launch, place, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    from bufferzone.client.connection import Client
    from bufferzone.library.wishes import Stdin

#: bytes of output that are kept where nobody says: output without end must not end the caller
OUTPUT_LIMIT = 64 << 20
#: from the end of a command until its shim has told so, and how often to look
_ENDING_S, _LOOK_S = 3.0, 0.05
_ours: weakref.WeakSet[Container] = weakref.WeakSet()


class Container:
    """A container that runs: one that `Sandbox.container` has made, or the first of a sandbox, which is the
    `Sandbox` itself. A context manager: one that is ours is removed at the end. It ends with this process,
    whatever ends that, and with its sandbox.

    Its methods block, and may be called from many threads at once.
    """

    _kind = "container"
    _base: dict[str, Any] | None = None
    _place: place.Place | None = None

    def __init__(
        self, root: str, name: str, held: Client | None = None, at: place.Place | None = None
    ) -> None:
        """`Sandbox.container` makes them. `held`: the connection that it lives as long as, with its place
        `at`; None: it is not ours.
        """
        self._root, self.name = root, name
        self._directory = os.path.join(root, name)
        self._connections = Connections(self._directory, held, kind=self._kind)
        self._rootfs, self._place = "", at
        self._removing = threading.Lock()
        self.files = Files(self._connections, name, self._process)
        if held is not None:
            _ours.add(self)

    # ---- programs

    def run(
        self,
        args: Sequence[str],
        *,
        stdin: Stdin = None,
        timeout_s: float | None = None,
        cpu_time_s: float | None = None,
        memory_mib: int = 0,
        output_limit: int | None = OUTPUT_LIMIT,
        user: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        stop: int = -1,
    ) -> Result:
        """Run a program to its end; how it ended is the result, also where it failed.

        `stdin`: text, bytes, or an open file. `timeout_s` counts from the call, `cpu_time_s` what it and all
        it started have used; `memory_mib` is a limit for the same, within the sandbox's. `output_limit`:
        bytes of stdout and stderr together. Whoever exceeds one is killed with all it started, and so is it
        when the descriptor `stop` (an eventfd, a pipe) becomes readable. Processes that it leaves behind
        otherwise live on.

        Raises `ExecError` where there is no such program, `StateError` where the sandbox is paused or has
        ended, `VmmError` where the VM is lost.
        """
        wanted = Wanted(args, env=env, cwd=cwd, user=user, memory_mib=memory_mib)
        limits = Limits(timeout_s, cpu_time_s, output_limit, stop)
        return run(self._connections, self.name, self._process(wanted), wishes.input_of(stdin), limits)

    def start(
        self,
        args: Sequence[str],
        *,
        memory_mib: int = 0,
        user: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        pty: bool | tuple[int, int] = False,
    ) -> Process:
        """Start a program and return it while it runs, with its streams. `pty`: it has a terminal, of so
        many columns and rows; stdout is that then, and stdin what is typed. Raises as `run` does.
        """
        size = None if pty is False else (80, 24) if pty is True else pty
        wanted = Wanted(args, env=env, cwd=cwd, user=user, memory_mib=memory_mib, terminal=size)
        return Process(self._connections, self.name, self._process(wanted))

    def _process(self, wanted: Wanted) -> dict[str, Any]:
        if self._base is None:
            try:
                spec = oci.load(str(state.read_state(self._directory)["bundle"]))
            except NotFoundError as error:
                raise self._connections.explained(error) from error
            self._rootfs, self._base = spec.rootfs, spec.process
        return process_object(self._base, wanted, self._find_user)

    def _find_user(self, text: str) -> users.User:
        return users.find_in_container(self._directory, self._rootfs, text)

    # ---- the whole

    @property
    def status(self) -> str:
        """creating, created, running, paused or stopped; stopped too where it was removed."""
        if self._connections.given_up:
            return state.STOPPED
        try:
            return state.status(self._directory)
        except NotFoundError:
            return state.STOPPED

    def info(self) -> Info:
        """What others see of it; raises `NotFoundError`."""
        return listing.info(self._root, self.name)

    def stats(self) -> Stats:
        """What it uses now."""
        ref = agent.ProcessRef(id=self.name)
        answer = self._connections.call("Metrics", ref, service=shim.SERVICE)
        return listing.stats({counter.name: counter.value for counter in answer.counters})

    def logs(self) -> str:
        """What its command wrote so far, stdout and then stderr; empty where there is none."""
        return listing.logs(self._directory)

    def pause(self) -> None:
        """Freeze all that runs in it."""
        self._connections.call("Pause", task.PauseRequest(id=self.name))

    def resume(self) -> None:
        """Let it go on."""
        self._connections.call("Resume", task.ResumeRequest(id=self.name))

    def wait(self) -> int:
        """Wait until its command has ended; the exit status."""
        answer = self._connections.call("Wait", task.WaitRequest(id=self.name))
        return min(int(answer.exit_status), 255)

    def close(self) -> None:
        """Let go of it: one that is ours is removed, one that is detached or was attached to goes on."""
        if self._connections.holds:
            self.remove()
        self._connections.close()

    def remove(self) -> None:
        """End it and remove all that is its own on the disk, whoever started it; twice is harmless."""
        with self._removing:
            if self._connections.given_up:
                return  # another may have its name by now
            try:
                launch.remove(self._root, self.name, force=True)
            except NotFoundError:
                pass  # somebody else did
            self._connections.close()
            if self._place is not None:
                self._place.remove()
                self._place = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<bufferzone.{type(self).__name__} {self.name} {self.status}>"


def is_ending(container: Container) -> bool:
    """Whether it has ended; what is asked of one that is ending fails in more than one way."""
    until = time.monotonic() + _ENDING_S
    while container.status != state.STOPPED:
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_S)
    return True


def _remove_ours() -> None:
    """The program ends in an orderly way: nothing is left."""
    for container in list(_ours):
        if container._connections.holds:
            container.remove()


atexit.register(_remove_ours)
