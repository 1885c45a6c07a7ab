"""Starts the programs that are measured and takes the times: to the first byte of stdout, and to the end.

Each runs in a session of its own, so that a ^C at the terminal is for us alone, and with a short fixed
environment. We are a subreaper: whatever they leave behind is our descendant, and ended with us.
"""

from __future__ import annotations

import os
import select
import signal
import time

from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_MOST_OUTPUT = 1 << 20
#: our own children, which are not to be taken for orphans
_alive: dict[int, Program] = {}


class Program:
    """A started program: `first_ms` to the first byte of its stdout, `total_ms` to its own end.

    The pipe of stdout stays open until `close`, since a detached container goes on using it. With `heard` its
    stdin ends once we have heard its first byte, and not from the start.
    """

    def __init__(self, argv: Sequence[str], errors: str, *, heard: bool = False) -> None:
        self.argv, self._errors = list(argv), errors
        self.output = b""
        self.first_ms: float | None = None
        self.total_ms: float | None = None
        self.status: int | None = None
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        # a pipe: runsc gives its stdin to the container's user, and /dev/null is the host's
        nothing, self._held = os.pipe2(os.O_CLOEXEC)
        if not heard:
            self._let_go()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing, 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_OPEN, 2, errors, flags, 0o600),
        ]
        self._begin = time.perf_counter()
        try:
            self.pid = os.posix_spawn(argv[0], self.argv, ENVIRONMENT, file_actions=actions, setsid=True)
        except OSError as error:
            os.close(self._reader)
            self._let_go()
            raise HostError(f"cannot start {argv[0]}: {error.strerror}") from error
        finally:
            os.close(writer)
            os.close(nothing)
        self._pidfd = os.pidfd_open(self.pid)
        _alive[self.pid] = self

    def waiting_for(self) -> list[int]:
        """Descriptors that will tell more."""
        return [fd for fd in (self._reader, self._pidfd) if fd >= 0]

    def hear(self, timeout_ms: float) -> None:
        """Take what it has to tell within that time."""
        poll = select.poll()
        for fd in self.waiting_for():
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(timeout_ms):
            self.take(fd)

    def take(self, fd: int) -> None:
        """What `fd`, one of `waiting_for`, has to tell."""
        now = (time.perf_counter() - self._begin) * 1000
        if fd == self._pidfd:
            self.total_ms = now
            self._collect()
            return
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            os.close(fd)
            self._reader = -1
            return
        self._let_go()
        if len(self.output) < _MOST_OUTPUT:
            self.first_ms = now if self.first_ms is None else self.first_ms
            self.output += chunk

    def _let_go(self) -> None:
        """End its stdin."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _collect(self) -> None:
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._pidfd)
        self._pidfd = -1
        del _alive[self.pid]

    @property
    def ended(self) -> bool:
        """Whether the program itself ended; a container of it may live on."""
        return self._pidfd < 0

    @property
    def silent(self) -> bool:
        """Whether stdout is at its end."""
        return self._reader < 0

    def errors(self) -> str:
        """The last line of its stderr."""
        try:
            with open(self._errors, encoding="utf-8", errors="replace") as file:
                lines = file.read(1 << 16).splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else f"exit status {self.status}"

    def close(self) -> None:
        """Kill it if it runs, and let go of its pipes."""
        self._let_go()
        if self._pidfd >= 0:
            os.kill(self.pid, signal.SIGKILL)
            self._collect()
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1


def listen(program: Program, done: Callable[[], bool], timeout_s: float) -> bool:
    """Take what a program says until `done`, which is asked again every 20 ms; False when time is up."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            return False
        program.hear(20)
    return True


def await_all(programs: Sequence[Program], timeout_s: float, *, first_byte: bool = False) -> None:
    """Wait until all programs ended and, with `first_byte`, each has printed something; without, until
    everything they print was read.

    Raises `HostError` for one that fails, and when `timeout_s` is over.
    """
    end = time.monotonic() + timeout_s
    while True:
        poll, owners = select.poll(), {}
        if _child_ended >= 0:
            poll.register(_child_ended, select.POLLIN)
        for program in programs:
            if program.ended and program.status:
                raise HostError(f"{' '.join(program.argv[:3])} ... failed: {program.errors()}")
            printed = program.silent or (first_byte and program.first_ms is not None)
            if not (program.ended and printed):
                for fd in program.waiting_for():
                    owners[fd] = program
                    poll.register(fd, select.POLLIN)
        if not owners:
            break
        ready = poll.poll(max(0.0, end - time.monotonic()) * 1000)
        if not ready:
            raise HostError(f"no end after {timeout_s:g} s: {' '.join(next(iter(owners.values())).argv)}")
        for fd, _ in ready:
            if fd in owners:
                owners[fd].take(fd)
        if (_child_ended, select.POLLIN) in ready:
            reap()
    silent = [program for program in programs if first_byte and program.first_ms is None]
    if silent:
        raise HostError(f"printed nothing: {' '.join(silent[0].argv)}: {silent[0].errors()}")


def run(argv: Sequence[str], errors: str, timeout_s: float) -> Program:
    """Run a program to its end; raises `HostError` when it fails or does not end."""
    program = Program(argv, errors)
    try:
        await_all([program], timeout_s)
    finally:
        program.close()
    return program


def watch_children() -> None:
    """Collect orphans while programs are awaited: runsc's `delete` waits until its sandbox is no zombie."""
    global _child_ended
    _child_ended, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


_child_ended = -1


def reap() -> None:
    """Collect the orphans that ended, and not our own programs: those are for `await_all`."""
    if _child_ended >= 0:
        try:
            os.read(_child_ended, 1 << 16)
        except BlockingIOError:
            pass  # nobody told us of any
    for pid in _zombies():
        if pid not in _alive:
            os.waitpid(pid, os.WNOHANG)


def _zombies() -> list[int]:
    """Children of ours that ended. Orphans become the first thread's children."""
    own = os.getpid()
    try:
        with open(f"/proc/{own}/task/{own}/children", encoding="ascii") as file:
            pids = file.read().split()
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        pids = os.listdir("/proc")
    return [pid for pid, (state, parent) in _processes(pids).items() if state == "Z" and parent == own]


def _processes(names: Iterable[str]) -> dict[int, tuple[str, int]]:
    """pid -> (state, parent) of those names below /proc that are pids."""
    found = {}
    for entry in names:
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended
            found[int(entry)] = state, int(parent)
    return found


def descendants() -> list[int]:
    """The pids of everything that we started, directly or not, zombies left out."""
    parents = {
        pid: parent for pid, (state, parent) in _processes(os.listdir("/proc")).items() if state != "Z"
    }
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def end_all(timeout_s: float = 10.0) -> None:
    """Kill every descendant, and their orphans, until there is none."""
    end = time.monotonic() + timeout_s
    while (pids := descendants()) and time.monotonic() < end:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        select.select([], [], [], 0.02)  # the end of a grandchild is no event of ours
        reap()
