"""The host's view of one process in the VM, and the table of what may be done to it in which state."""

from __future__ import annotations

import json
import threading
import time

from bufferzone.errors import BufferzoneError, EndedError, SpecError, StateError
from bufferzone.oci.rules import check_resources
from bufferzone.shim.stdio import Stdio
from bufferzone.wire import agent, task
from bufferzone.wire.proto import Any_, Empty, Message, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from bufferzone.shim.stand_ins import StandIn
    from bufferzone.vm.agent_client import AgentClient, Pending

KILLED = 137  # 128 + SIGKILL: what a process gets that went down with its VM

#: verb -> states it fits. Source: runc's state machine, runtime-spec "Runtime and Lifecycle".
ALLOWED = {
    "start": (task.CREATED,),
    "kill": (task.CREATED, task.RUNNING, task.PAUSED),
    "exec": (task.CREATED, task.RUNNING),
    "pause": (task.CREATED, task.RUNNING),
    "resume": (task.PAUSED,),
    "update": (task.CREATED, task.RUNNING, task.PAUSED),
    "delete": (task.CREATED, task.STOPPED),
    "checkpoint": (task.RUNNING, task.PAUSED),
}


class Process:
    """A container's init (`exec_id` empty) or one of its execs.

    `pid` is the host process that stands for it, `spec` an exec's process section until it is started.
    `exited` is set once the status is final, the output delivered and the stdio closed, but for what
    descendants of an exec still write (`task.OUTLIVED`).
    """

    def __init__(
        self,
        ref: agent.ProcessRef,
        *,
        bundle: str,
        terminal: bool,
        uris: tuple[str, str, str],
        stdio: Stdio,
        pid: int,
        spec: bytes = b"",
        wishes: frozenset[str] = frozenset(),
    ) -> None:
        self.ref, self.bundle, self.terminal, self.uris = ref, bundle, terminal, uris
        self.stdio, self.pid, self.spec = stdio, pid, spec
        self.wishes = wishes  # of an exec, see `task.OWN_PROCESS_URL`
        self.begun = not spec  # the guest was asked to make it
        self.status = task.CREATED
        self.before_pause = task.CREATED  # what it is again once it is resumed
        self.exit_status = 0
        self.exited_at_ns = 0
        self.oom_kills = 0  # of the whole container, by the time of the end
        self.exited = threading.Event()
        self.transition = threading.Lock()  # held while the status changes and the change is published
        self.saved = False  # it ends because it goes on from a checkpoint
        self.failure = ""  # why it ended that the guest did not say
        self.signalled, self.oom = 0, False
        self.cpu_us = self.peak_bytes = 0  # of an exec that is measured
        self.forget_caller: Callable[[], None] = lambda: None  # its caller's end is no concern any more
        self._stand_in: StandIn | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"exec {self.ref.exec_id}" if self.ref.exec_id else f"container {self.ref.id}"

    def words(self) -> list[str]:
        """The command line of an exec that has not been started; `check_spec` has seen it."""
        return [str(word) for word in json.loads(self.spec)["args"]]

    def stand_on_host(self, stand_in: StandIn) -> None:
        """From now on `stand_in` stands for it, until it ends."""
        self._stand_in, self.pid = stand_in, stand_in.pid

    @property
    def stands_in(self) -> bool:
        """Whether a process of ours stands for it, which does nothing, and no waiter of a caller."""
        return self._stand_in is not None

    def leave_host(self) -> None:
        """Nothing of ours stands for it any more."""
        if self._stand_in is not None:
            self._stand_in.end()

    def require(self, verb: str, *, paused: bool = False) -> None:
        """Raise the `StateError` runc's callers expect unless `verb` fits the state. `paused` does, too."""
        if verb == "checkpoint" and self.status == task.PAUSED and self.before_pause == task.CREATED:
            raise StateError(f"cannot checkpoint {self.name}: it was paused before it was started")
        if self.status in ALLOWED[verb] or (paused and self.status == task.PAUSED):
            return
        now = task.STATUS_NAMES[self.status]
        if verb == "kill":
            raise self._has_ended()
        if verb == "start" and now == "paused":
            raise StateError("cannot start a container in the paused state")
        if verb == "start":
            text = (
                f"cannot start a container that has {now}"
                if now == "stopped"
                else f"cannot start an already {now} container"
            )
            raise StateError(text)
        if verb == "exec":
            raise StateError(f"cannot exec in a {now} container")
        if verb == "delete":
            raise StateError(f"cannot delete {self.name} that is not stopped: {now}")
        raise StateError(f"cannot {verb} {self.name}: it is {now}")

    def _has_ended(self) -> EndedError:
        return EndedError("container not running" if not self.ref.exec_id else "process already finished")

    def signal(self, client: AgentClient, number: int, *, everyone: bool) -> None:
        """Signal it, or its whole container; raises `EndedError` also before we have heard of its end."""
        if not self.begun:
            return  # an exec that never started has nothing to signal
        request = agent.SignalRequest(id=self.ref.id, exec_id=self.ref.exec_id, signal=number, all=everyone)
        try:
            client.call("Signal", request, Empty)
        except StateError as error:
            if error.code == agent.FINISHED:
                raise self._has_ended() from error
            raise

    def first_requests(self) -> list[tuple[str, Message]]:
        """What `attend` asks first; it may follow the request that makes the process."""
        return [*self.stdio.first_requests(self.ref, terminal=self.terminal), ("Wait", self.ref)]

    def attend(
        self, client: AgentClient, pending: Sequence[Pending], finished: Callable[[Process, str], None]
    ) -> None:
        """Copy its stdio and wait for its end in threads of their own; then `finished(process, failure)`
        before `exited` is set.

        `pending`: the answers to `first_requests`, or none if they were not sent. `failure` is empty unless
        the VM went down with the process.
        """
        self.stdio.start(client, self.ref, terminal=self.terminal, pending=pending[:-1])
        wait = pending[-1] if pending else None
        threading.Thread(
            target=self._watch, args=(client, wait, finished), name=f"wait {self.name}", daemon=True
        ).start()

    def _watch(
        self, client: AgentClient, wait: Pending | None, finished: Callable[[Process, str], None]
    ) -> None:
        failure = ""
        try:
            if wait is not None:
                reply = wait.result(agent.WaitResponse)
            else:
                reply = client.call("Wait", self.ref, agent.WaitResponse)
            status, self.oom_kills = min(reply.exit_status, 255), reply.oom_kills
            self.signalled, self.oom = reply.signal, reply.oom
            self.cpu_us, self.peak_bytes = reply.cpu_us, reply.peak_bytes
        except BufferzoneError as error:
            failure, status = "" if self.saved else error.line(), KILLED
        self.end(status, failure, finished)

    def end(self, status: int, failure: str, finished: Callable[[Process, str], None]) -> None:
        """Make `status` final: deliver the rest of the output, print a `failure`, close, publish."""
        self.failure = failure
        try:
            if failure:
                self.stdio.print_line(f"bufferzone: {self.ref.id}: {failure}\n")
                self.stdio.hurry()  # nothing more will come, and the end is no reader's to hold back
            self.stdio.finish()
            self.leave_host()
            with self.transition:
                self.exit_status, self.exited_at_ns = status, time.time_ns()
                self.status = task.STOPPED
                finished(self, failure)
        finally:
            self.exited.set()  # whatever went wrong: somebody waits for it

    def killed(self, timeout_s: float) -> bool:
        """SIGKILL was sent: wait at most `timeout_s` for the end, and for its reader no longer than that."""
        self.stdio.hurry()
        return self.exited.wait(timeout_s)

    def exited_at(self) -> Timestamp | None:
        """When it ended, or None."""
        return Timestamp.from_ns(self.exited_at_ns) if self.exited_at_ns else None

    def state(self) -> task.StateResponse:
        """The Task API's view."""
        stdin, stdout, stderr = self.uris
        return task.StateResponse(
            id=self.ref.id,
            bundle=self.bundle,
            pid=self.pid,
            status=self.status,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=self.terminal,
            exit_status=self.exit_status,
            exited_at=self.exited_at(),
            exec_id=self.ref.exec_id,
        )


def check_spec(spec: bytes) -> None:
    """Raise `StateError` unless this is a process object with something to run."""
    try:
        value = json.loads(spec)
    except ValueError as error:
        raise StateError(f"process spec is not JSON: {error}", code="bad-spec") from error
    if not isinstance(value, dict) or not value.get("args"):
        raise StateError("process.args: missing or empty", code="bad-spec")


def wishes_of(spec: Any_ | None) -> frozenset[str]:
    """What one of ours wants of a process: `task.PATIENT`, `task.LINGERING`, `task.OUTLIVED`, `task.HELD`."""
    url, *words = spec.type_url.split("/") if spec is not None else [""]
    return frozenset(words) if url in (task.OWN_PROCESS_URL, task.FOREGROUND_URL) else frozenset()


def parse_resources(text: bytes) -> dict[str, Any]:
    """linux.resources in JSON, of the right types; raises `SpecError`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SpecError(f"resources are not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError("resources: expected an object")
    return check_resources(value)
