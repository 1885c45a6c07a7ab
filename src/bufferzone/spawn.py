"""Starting a host program that lives on: fork, a confinement step in the child, execve, and a report of what
failed.

The only place that forks a helper. Refuses: a shell, a command line built from text, a search path, an
environment of the caller's. What the child may keep is `jail.py`'s business; this module knows only the order
fork -> `enter` -> default signals -> execve, and carries errors back.

Call from the thread that lives as long as the process (the main thread): PR_SET_PDEATHSIG fires when the
*thread* that forked ends (prctl(2)). The shim does so while it has no other thread, since a fork copies locks
held elsewhere.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time

from bufferzone.errors import BugError, HostError
from bufferzone.linux import pidns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: seconds a child may take from fork to execve; mounts and namespaces need milliseconds
START_TIMEOUT_S = 20.0
#: what is sent to programs and ends those that do not expect it; `systemctl kill` of a scope tells all in it
ENDING = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


class Child:
    """A started helper: `pid`, and `pidfd`, which becomes readable when it has ended. Owns the pidfd."""

    def __init__(self, name: str, pid: int, pidfd: int) -> None:
        self.name = name
        self.pid = pid
        self.pidfd = pidfd
        #: what the host's security modules had to do with its failure, once it has ended with one
        self.denied = ""
        self._status: int | None = None
        self._killed = self._refused = False
        self._reaping = threading.Lock()

    def fileno(self) -> int:
        """The pidfd, so that the child itself can be polled."""
        return self.pidfd

    def wait_exit(self, timeout_s: float | None = None) -> int | None:
        """Its exit status (0-255) or minus the signal that ended it; None when `timeout_s` passed first.

        Reaps. Later calls, of any thread, return the same status.
        """
        if self._status is None and self.pidfd >= 0:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            if poller.poll(None if timeout_s is None else timeout_s * 1000):
                with self._reaping:  # the second to come finds no child: its status would be lost
                    if self._status is None:
                        self.denied = "" if self._killed else _denied(self.pid)
                        self._status = _reap(self.pid)
        return self._status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when it has ended already, or when its profile takes none of ours
        (apparmor.d(5), signal rules), which the kernel says even of one that has ended.
        """
        if self._status is None and self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
                self._killed = self._killed or number == signal.SIGKILL
            except ProcessLookupError:
                pass
            except PermissionError:
                self._refused = True

    def close(self) -> None:
        """Kill, reap and release the pidfd. May be called twice. Raises HostError when the kernel did not
        let us kill it and it has not ended by itself.
        """
        if self.pidfd < 0:
            return
        self.kill()
        status = self.wait_exit(START_TIMEOUT_S if self._refused else None)
        os.close(self.pidfd)
        self.pidfd = -1
        if status is None and self._status is None:
            hint = _hint(errno.EACCES, self.pid)
            raise HostError(f"cannot kill {self.name}, process {self.pid}", hint=hint, code="kill-refused")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _denied(pid: int) -> str:
    """Asked while its label can still be read: of one that has ended by itself, with an error or a signal (a
    program that may not be mapped into memory is killed in the middle of execve).
    """
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return ""
    if ended is None or ended.si_status == 0:
        return ""
    from bufferzone.linux import denial  # no start needs it

    confined = denial.label(pid)
    return (denial.of(pid, confined) if confined else "") or denial.filtered(
        pid, wait_s=1.0 if ended.si_status == signal.SIGSYS else 0.0
    )


def _reap(pid: int) -> int:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:  # someone else reaped it, so the status is lost
        return 255
    return os.waitstatus_to_exitcode(status)


class Conversation:
    """The child's end of the start-up talk: names the step it is in, and asks the parent to act or confirm.

    Messages to the parent are lines: `ask TOPIC`, or `fail ERRNO STEP`. The parent answers one byte.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self.step = "start"
        self._reader = reader
        self._writer = writer

    @property
    def descriptors(self) -> tuple[int, int]:
        """Descriptors to leave open until execve (which closes them)."""
        return self._reader, self._writer

    def ask(self, topic: str) -> None:
        """Wait until the parent has done its part; raises OSError(EPIPE) when the parent is gone."""
        os.write(self._writer, f"ask {topic}\n".encode())
        if os.read(self._reader, 1) != b"+":
            raise OSError(errno.EPIPE, "the parent ended or refused")

    def fail(self, error: OSError) -> None:
        """Report the step that failed."""
        path = "" if error.filename is None else str(error.filename)
        where = f" {path!r}" if path and path not in self.step else ""
        os.write(self._writer, f"fail {error.errno or 0} {self.step}{where}\n".encode()[:4096])


def start(
    name: str,
    argv: Sequence[str],
    enter: Callable[[Conversation], Callable[[], object] | None],
    *,
    pid_namespace: bool = False,
    deaf: bool = False,
    heeds: tuple[int, ...] = (),
    attend: Callable[[str, int], None] | None = None,
) -> Child:
    """Start `argv` (argv[0] is the absolute path as the child sees it after `enter`) with an empty
    environment.

    `enter` runs in the child and confines it; what it returns is called in place of execve(2). `deaf`:
    signals that would end it stay pending, but for those that it `heeds`; what starts it kills it.
    `attend(topic, pid)` runs here when the child asks for something. Raises HostError naming the step that
    failed; then nothing is left running.
    """
    to_child, to_parent = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    pid = _fork_into(pid_namespace)
    if pid == 0:
        os.close(to_child[1])
        os.close(to_parent[0])
        blocked = [number for number in ENDING if number not in heeds] if deaf else []
        _become(argv, enter, Conversation(to_child[0], to_parent[1]), blocked)
    os.close(to_child[0])
    os.close(to_parent[1])
    child = Child(name, pid, os.pidfd_open(pid))
    try:
        _attend(child, to_parent[0], to_child[1], attend)
    except BaseException:
        child.close()
        raise
    finally:
        os.close(to_parent[0])
        os.close(to_child[1])
    return child


def _fork_into(pid_namespace: bool) -> int:
    """fork(2), the child being PID 1 of a new PID namespace if wished; our later children are not."""
    if not pid_namespace:
        return os.fork()
    try:
        return pidns.fork()
    except OSError as error:
        raise HostError(
            f"cannot create a process in a PID namespace: {error}",
            hint=_hint(error.errno or 0, os.getpid(), "create a PID namespace"),
            code="spawn-failed",
        ) from error


def _become(
    argv: Sequence[str],
    enter: Callable[[Conversation], Callable[[], object] | None],
    talk: Conversation,
    blocked: Sequence[int],
) -> None:
    """The child's whole life in Python. Never returns."""
    try:
        os.setsid()  # a ^C at the caller's terminal is not for the helper
        execute = enter(talk)
        _default_signals(blocked)
        talk.step = f"execute {argv[0]}"
        if execute is not None:
            execute()
        os.execve(argv[0], list(argv), {})
    except OSError as error:
        talk.fail(error)
    except BaseException as error:  # a bug of ours must not return into the caller's stack, in two processes
        talk.step += f": {type(error).__name__}: {error}".replace("\n", " ")
        talk.fail(OSError(0, ""))
    finally:
        os._exit(127)


def _default_signals(blocked: Sequence[int]) -> None:
    """Python ignores SIGPIPE and SIGXFSZ, and ignored signals and the mask survive execve."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _attend(child: Child, reader: int, writer: int, attend: Callable[[str, int], None] | None) -> None:
    """Serve the child until execve closes the pipe, or it fails, or time is up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    pending = b""
    while True:
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise HostError(
                f"cannot start {child.name}: not running after {START_TIMEOUT_S:g} s", code="spawn-failed"
            )
        chunk = os.read(reader, 4096)
        if not chunk:
            return
        pending += chunk
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            _answer(child, line.decode(errors="replace"), writer, attend)


def _answer(child: Child, line: str, writer: int, attend: Callable[[str, int], None] | None) -> None:
    kind, _, rest = line.partition(" ")
    if kind == "ask":
        if attend is not None:
            attend(rest, child.pid)
        os.write(writer, b"+")
        return
    number, _, step = rest.partition(" ")
    if kind != "fail" or not number.isdigit():
        raise BugError(f"unexpected report from {child.name}: {line!r}")
    reason = f": {os.strerror(int(number))}" if int(number) else ""
    hint = _hint(int(number), child.pid, step)
    raise HostError(f"cannot start {child.name}: {step}{reason}", hint=hint, code="spawn-failed")


def _hint(number: int, pid: int, step: str = "") -> str:
    from bufferzone.linux import denial

    return denial.hint(number, pid, step)
