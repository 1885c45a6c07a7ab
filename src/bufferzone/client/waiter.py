"""The waiter: the process whose pid is in the pid file. It stands for one process in the VM and ends with it.

conmon reaps it as its orphan; how it comes to be is in `client.detach`. While its connection
to the shim lives, so does the process it stands for. Of whoever started it, it keeps nothing but the stderr
that its process was given, to say there that the VM was lost, until nobody in the VM has that open any more;
with a terminal not even that.
"""

from __future__ import annotations

import os
import select
import sys

from bufferzone import jsontext, log, state
from bufferzone.client import signals
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, BugError, HostError, VmmError
from bufferzone.wire import task
from bufferzone.wire.proto import Any_

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Sequence

    from bufferzone.client.job import Job
    from bufferzone.client.process_table import ProcessTable
else:
    import _signal  # signal.py imports enum

LOST = 137  # as if killed: what a process gets that went down with its VM
_CALL_S = 10.0
_ON_DISK = b'"bufferzone.rootfs": "block"'
_MOST_FDS = 1 << 20  # one close_range(2)
_STDIO = ("fd:0", "fd:1", "fd:2")
_TERMINAL = ("fd:0", "fd:0", "")
_SPLIT_TERMINAL = ("fd:0", "fd:1", "")


def get_ready() -> None:
    """Import what `stand` needs: while something else is awaited it costs nothing."""
    from bufferzone.client import waiter_root  # noqa: F401
    from bufferzone.linux import pidns  # noqa: F401


def stand(job: Job, stdio: Sequence[int], tell: int) -> int:
    """The life of this process as a waiter; returns its exit status.

    `stdio` are the three descriptors for the process in the VM. `tell` gets one line: `ok` once the process
    is made, or the error as `handshake.error_line` writes it. From then on no other descriptor is open.
    """
    from bufferzone.client import handshake  # here, as long as an import reads the host's files

    told = False
    os.environ.pop(log.DEBUG, None)  # our stderr is the container's
    try:
        os.setsid()
        enter_network(job.network)
        with (
            _connect(job) as client,
            _connect(job) as control,
            _Signals(caught=True) as incoming,
        ):
            terminal = _terminal(job)
            heard, notice = (-1, -1) if job.terminal else os.pipe()
            fds, uris = ([terminal], _TERMINAL) if job.terminal else ((*stdio, notice), _STDIO)
            _begin(job, client, uris, fds)
            table = _show_face(job)
            complaints = terminal if job.terminal else stdio[2]
            kept = {tell, complaints, heard, client.fileno(), control.fileno(), *incoming.fds}
            _close_all_but(kept | (table.descriptors if table is not None else set()))
            os.write(tell, b"ok\n")
            os.close(tell)
            told = True
            return _await_end(job, client, control, incoming, terminal, complaints, table, heard)
    except BufferzoneError as error:
        failure = error
    except Exception as error:  # the boundary of this process
        failure = BugError(f"the waiter failed: {type(error).__name__}: {error}")
    try:
        if not told:
            os.write(tell, handshake.error_line(failure))
    except OSError:
        pass  # the caller was killed meanwhile; without us the shim ends the process
    return 1


def _terminal(job: Job) -> int:
    """The slave of a new pty; -1 where the process has no terminal."""
    if not job.terminal:
        return -1
    from bufferzone.client import console  # most processes have none

    return console.open_pty(job.console_socket, job.size)


def _show_face(job: Job) -> ProcessTable | None:
    if job.face is None:
        return None
    from bufferzone.client import waiter_root

    _import_no_more()
    return waiter_root.enter_root(job.face, on_disk=state.annotated(job.directory, _ON_DISK))


def attach(job: Job, started: Callable[[Client], None], stdio: Sequence[int], *, pass_signals: bool) -> int:
    """Be the waiter ourselves until the process ends; returns its exit status.

    `started` runs once the process is made, before its end is awaited. A process with a terminal takes its
    size from the first of `stdio` that is one, and stdin, if it is one, is raw meanwhile. With
    `pass_signals`, for a program that is nothing else meanwhile, signals are passed on instead of ending us
    (main thread only), and stdin and stdout are let go of, so that who reads that stdout sees its end when
    the last writer in the VM has closed it.
    """
    with _Signals(caught=pass_signals) as incoming, _connect(job) as client, _connect(job) as control:
        if not job.terminal:
            _begin(job, client, _STDIO, stdio, foreground=True)
            started(client)
            if pass_signals:
                _let_go(stdio[:2])
            return _await_end(job, client, control, incoming, -1, stdio[2])
        from bufferzone.client import console

        with console.RawTerminal(stdio[0]):
            _begin(job, client, _SPLIT_TERMINAL, stdio[:2], foreground=True)
            started(client)
            sized = next((fd for fd in stdio if os.isatty(fd)), -1)
            return _await_end(job, client, control, incoming, sized, stdio[2])


def hold(job: Job, stdio: Sequence[int], *, inside: bool = False) -> Client:
    """Have the container made; while the connection that is returned lives, so does it. `inside`: it is one
    more in the sandbox of another.
    """
    client = _connect(job)
    try:
        _begin(
            job, client, _STDIO, stdio, foreground=True, held=(task.HELD, *([task.INSIDE] if inside else []))
        )
    except BaseException:
        client.close()
        raise
    return client


def _let_go(fds: Sequence[int]) -> None:
    """The shim has them: ours become /dev/null."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def _begin(
    job: Job,
    client: Client,
    uris: tuple[str, str, str],
    fds: Sequence[int],
    *,
    foreground: bool = False,
    held: Sequence[str] = (),
) -> None:
    """Have the shim make the process, and start it where it is an exec. `foreground`: we go on after its end,
    so that the container's cgroup, which nobody could remove, is not for us. An exec's output ends with its
    last writer, as with runc. `held`: words of `task.FOREGROUND_URL`.
    """
    stdin, stdout, stderr = uris
    if not job.exec_id:
        request = task.CreateTaskRequest(
            id=job.id,
            bundle=job.bundle,
            rootfs=[task.Mount(type=kind, source=s, options=options) for kind, s, options in job.rootfs],
            terminal=job.terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            options=Any_(type_url="/".join([task.FOREGROUND_URL, *held])) if foreground else None,
        )
        client.call("Create", request, fds=fds)
        return
    outlived = not foreground and not job.terminal
    wishes = [(job.patient, task.PATIENT), (foreground, task.LINGERING), (outlived, task.OUTLIVED)]
    url = "/".join([task.OWN_PROCESS_URL, *(word for wanted, word in wishes if wanted)])
    exec_request = task.ExecProcessRequest(
        id=job.id,
        exec_id=job.exec_id,
        terminal=job.terminal,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        spec=Any_(type_url=url, value=jsontext.dumps(job.process).encode()),
    )
    client.call("Exec", exec_request, fds=fds)
    try:
        client.call("Start", task.StartRequest(id=job.id, exec_id=job.exec_id))
    except BaseException:
        _free_exec(job, client)
        raise


def _free_exec(job: Job, client: Client) -> None:
    """Let the shim forget an exec that never began."""
    try:
        client.call("Delete", task.DeleteRequest(id=job.id, exec_id=job.exec_id), timeout_s=_CALL_S)
    except BufferzoneError:
        pass  # the container ended and took it along


def _connect(job: Job) -> Client:
    """A connection to a shim that answered a moment ago: where nobody listens now, it has ended since."""
    try:
        return Client.connect(job.directory)
    except HostError as error:
        if error.code != "shim-gone":
            raise
        raise VmmError(f"the shim ended before it answered: {error.message}", code="shim-ended") from error


def enter_network(network: str | None) -> None:
    """Be in the network namespace of a container: see `Job.network`. Raises `HostError`."""
    if network is None:
        return
    from bufferzone.linux import process

    try:
        if not network:
            _new_network()
            return
        fd = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
        try:
            process.setns(fd, process.CLONE_NEWNET)
        finally:
            os.close(fd)
    except OSError as error:
        where = f"network namespace {network}" if network else "a new network namespace"
        from bufferzone.linux import denial

        raise HostError(
            f"cannot enter {where}: {os.strerror(error.errno or 0)}",
            hint=denial.hint(error.errno or 0, os.getpid(), where),
            code="netns",
        ) from error


def _new_network() -> None:
    from bufferzone.linux import process

    try:
        process.unshare(process.CLONE_NEWNET)
    except PermissionError:
        process.unshare(process.CLONE_NEWUSER | process.CLONE_NEWNET)  # without rights one owns one's own


def _import_no_more() -> None:
    """From here on an import fails: our root becomes the container's, and what lies there is not to run."""
    from bufferzone.client import handshake

    handshake.error_line(BugError(""))  # loads the C module that it is written with
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()


def _close_all_but(keep: set[int]) -> None:
    os.chdir("/")
    first = 0
    for fd in sorted(fd for fd in keep if fd >= 0):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, _MOST_FDS)


class _Signals:
    """While in this context, signals to pass on arrive as bytes in a pipe instead of ending us; none do
    unless `caught`, which takes the main thread.
    """

    def __init__(self, *, caught: bool) -> None:
        self._caught = (*signals.FORWARDED, signals.WINCH) if caught else ()

    def __enter__(self) -> _Signals:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._caught:
            self._wakeup = _signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {number: _signal.signal(number, lambda *_: None) for number in self._caught}
        return self

    def __exit__(self, *_: object) -> None:
        if self._caught:
            _signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
        os.close(self._read)
        os.close(self._write)

    @property
    def fds(self) -> tuple[int, int]:
        """The descriptors that must stay open."""
        return self._read, self._write

    def fileno(self) -> int:
        """For poll."""
        return self._read

    def read(self) -> bytes:
        """The signals that came, as bytes."""
        try:
            return os.read(self._read, 256)
        except BlockingIOError:
            return b""


def _await_end(
    job: Job,
    client: Client,
    control: Client,
    incoming: _Signals,
    terminal: int,
    complaints: int,
    table: ProcessTable | None = None,
    heard: int = -1,
) -> int:
    """Wait for the end of the process and pass on signals and sizes until then; returns its exit status.

    `control` is a second connection, since `client` is waiting. A byte from `heard` says that `complaints`,
    then ours to close, has no writer in the VM any more. No path is opened from here on: ours lead into the
    container.
    """
    try:
        stream = client.send("Wait", task.WaitRequest(id=job.id, exec_id=job.exec_id))
        if terminal >= 0:
            _resize(job, control, terminal)
        poll = select.poll()
        poll.register(client.fileno(), select.POLLIN)
        poll.register(incoming.fileno(), select.POLLIN)
        if table is not None:
            poll.register(table.fd, select.POLLIN)
        if heard >= 0:
            poll.register(heard, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if heard in ready:
                poll.unregister(heard)
                if os.read(heard, 1):  # else the shim is gone, which is told below
                    os.close(complaints)
                    complaints = -1
            if table is not None and table.fd in ready:
                table.show_to_readers(job.id, control)
            if incoming.fileno() in ready:
                _pass_on(job, control, incoming.read(), terminal)
            if client.fileno() in ready:
                answer = client.poll_response(stream, task.SERVICE, "Wait")
                if answer is not None:  # the shim frees an exec when our connection ends
                    return min(int(answer.exit_status), 255)
    except BufferzoneError as error:
        gone = isinstance(error, VmmError) and error.code == "shim-ended"
        text = "the shim that ran its VM was killed" if gone else log.line_of(error)
        end = "\r\n" if job.terminal else "\n"  # it is raw
        _complain(complaints, f"bufferzone: {job.id}: {text}{end}")
        return LOST


def _pass_on(job: Job, control: Client, numbers: bytes, terminal: int) -> None:
    for number in numbers:
        if number == signals.WINCH:
            if terminal >= 0:
                _resize(job, control, terminal)
        else:
            _ask(control, "Kill", task.KillRequest(id=job.id, exec_id=job.exec_id, signal=number))


def _resize(job: Job, control: Client, terminal: int) -> None:
    from bufferzone.client import console  # is loaded: whoever has a terminal here made it with that

    width, height = console.window_size(terminal)
    if width and height:
        request = task.ResizePtyRequest(id=job.id, exec_id=job.exec_id, width=width, height=height)
        _ask(control, "ResizePty", request)


def _ask(control: Client, method: str, request: task.KillRequest | task.ResizePtyRequest) -> None:
    """A call on the second connection; a failure changes nothing here."""
    try:
        control.call(method, request, timeout_s=_CALL_S)
    except BufferzoneError:
        pass  # the process ended at that moment, or Wait tells what happened


def _complain(fd: int, text: str) -> None:
    """Write one line where the caller looks, if it takes it at once: nobody may be reading any more."""
    try:
        if fd >= 0 and select.select([], [fd], [], 0)[1]:
            os.write(fd, text.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # closed
