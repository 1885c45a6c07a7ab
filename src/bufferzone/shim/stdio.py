"""Copies a process's stdio between the agent's blocking calls and host descriptors. One thread per stream.

Back-pressure is the blocking itself: nothing is read from the guest before the host's reader took the last
bytes. A URI is empty (null), `fd:N` (a descriptor sent with the request), a FIFO path, `file:///path`, or
`binary:///logger?args`. Source: containerd runtime v2 README, "Logging".
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading

from bufferzone import log
from bufferzone.errors import BufferzoneError, CallerError, HostError
from bufferzone.linux.ignoring import ignoring
from bufferzone.shim import loggers
from bufferzone.wire import agent
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.shim.loggers import Logger
    from bufferzone.vm.agent_client import AgentClient, Pending
    from bufferzone.wire.proto import Message


#: how long to wait at a time for a copy that should end
_GRACE_S = 1.0
_NULL_DEVICE = os.makedev(1, 3)  # /dev/null; Documentation/admin-guide/devices.txt


class Stdio:
    """The host ends of one process: `stdin`, `stdout`, `stderr` descriptors or -1; owns them."""

    def __init__(
        self,
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        *,
        keep: tuple[int, ...] = (),
        logger: Logger | None = None,
        notice: int = -1,
    ) -> None:
        self._logger = logger
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._keep = keep
        self._notice = notice  # a byte there: stderr has ended
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._outputs: list[_Copy] = []
        self._closing = threading.Lock()  # of descriptors: by the copy that ends, or all together
        self._closed = False
        self._late = -1  # what `outlive` hears of the end of a copy by
        self._input: threading.Thread | None = None
        self._stdin_gone = False
        self._hurried = False

    def first_requests(self, ref: agent.ProcessRef, *, terminal: bool) -> list[tuple[str, Message]]:
        """What `start` asks first. It may follow the request that makes the process: each costs the
        guest a wake-up of its own otherwise. A terminal's streams are not there so early.
        """
        if terminal:
            return []
        requests: list[tuple[str, Message]] = [
            ("Read", _read_request(ref, stream)) for stream in (agent.STDOUT, agent.STDERR)
        ]
        if _is_empty(self.stdin):
            requests.append(("CloseStdin", ref))
        return requests

    def start(
        self, client: AgentClient, ref: agent.ProcessRef, *, terminal: bool, pending: Sequence[Pending] = ()
    ) -> None:
        """Start copying; stdin ends by end of file or `close_stdin`, the others when the guest ends them.

        `pending`: the answers to `first_requests`, if they were sent.
        """
        streams = [(agent.STDOUT, self.stdout)] + ([] if terminal else [(agent.STDERR, self.stderr)])
        for at, (stream, fd) in enumerate(streams):
            copy = _Copy(client, _read_request(ref, stream), fd)
            first = pending[at] if pending else None
            early = not terminal  # a terminal may be opened again
            self._outputs.append(copy)
            threading.Thread(target=self._copy_out, args=(copy, first, early), daemon=True).start()
        if len(pending) > len(streams):
            return  # CloseStdin was sent too
        _widen(self.stdin)
        self._input = threading.Thread(target=self._copy_in, args=(client, ref), daemon=True)
        self._input.start()

    def close_stdin(self) -> None:
        """No more input: what was read is delivered, then the guest sees end of file."""
        self._stdin_gone = True
        self._wake()

    def finish(self) -> None:
        """Wait until all output of the process arrived, then close everything that its descendants do not
        write to. Called once, after the process ended.
        """
        for copy in self._outputs:
            while not copy.ended.wait(_GRACE_S) and not self._hurried:
                pass
        self.close()

    def outlive(self) -> None:
        """After `finish`: return once descendants of the process have closed its output, or nobody reads it
        any more. Then they get EPIPE, as from the reader's own pipe.
        """
        with self._closing:
            left = {copy.fd: copy for copy in self._outputs if copy.fd >= 0 and not copy.is_done}
            if not left or self._hurried:
                return
            heard, self._late = os.pipe2(os.O_CLOEXEC)
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        for fd in left:
            poll.register(fd, 0)  # POLLERR: nobody reads it, see poll(2)
        while left:
            for fd, _ in poll.poll():
                if fd == heard:
                    os.read(heard, len(left))
                else:
                    poll.unregister(fd)
                    left[fd].break_off()
            for fd in [fd for fd, copy in left.items() if copy.is_done]:
                del left[fd]
                with contextlib.suppress(KeyError):
                    poll.unregister(fd)
                os.close(fd)  # not before: poll(2) would hold it open
        with self._closing:
            os.close(heard)
            os.close(self._late)
            self._late = -1

    def hurry(self) -> None:
        """The process was killed: its last words do not wait for a reader that has stopped reading."""
        self._hurried = True

    def print_line(self, text: str) -> None:
        """Write one line of ours where the person looks (stderr, else the terminal), if it takes it at
        once.
        """
        fd = self.stderr if self.stderr >= 0 else self.stdout
        if fd < 0:
            return
        try:
            if select.select([], [fd], [], 0)[1]:
                os.write(fd, text.encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # nobody listens

    def close(self) -> None:
        """Stop the input thread and close all descriptors, but for those that a copy still hangs on."""
        self._stdin_gone = True
        self._wake()
        busy = set()
        if self._input is not None:
            self._input.join(_GRACE_S)
            if self._input.is_alive():
                busy.add(self.stdin)
        with self._closing:
            self._closed = True
            busy |= {copy.fd for copy in self._outputs if not copy.is_done}
            fds = {self.stdin, self.stdout, self.stderr, self._wake_read, self._wake_write, self._notice}
            fds.update(self._keep)
            self.stdin = self.stdout = self.stderr = self._wake_read = self._wake_write = self._notice = -1
            self._keep = ()
        fds -= busy
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        if self._logger is not None:
            self._logger.finish()
            self._logger = None

    def _wake(self) -> None:
        if self._wake_write >= 0:
            os.write(self._wake_write, b"x")

    def _copy_out(self, copy: _Copy, first: Pending | None, early: bool) -> None:
        """Copy until the last writer in the guest has closed; with `early` our reader sees that at once."""
        whole = False
        # the VM is gone: the exit carries the reason, and our reader gets a line about it
        with log.passing_over("copy an output", BufferzoneError):
            whole = copy.run(first)
        with self._closing:
            copy.is_done = True
            if self._late >= 0:
                os.write(self._late, b"x")
            elif self._closed:  # `close` has left it to us
                _close(copy.fd)
            elif early and whole:
                self._end_of_output(copy.fd)
        copy.ended.set()

    def _end_of_output(self, fd: int) -> None:
        if fd == self.stdout:
            self.stdout = -1
        elif fd == self.stderr:
            self.stderr = -1
            if self._notice >= 0:
                with ignoring(errno.EPIPE):  # nobody is there to hear it
                    os.write(self._notice, b"x")
        _close(fd)

    def _copy_in(self, client: AgentClient, ref: agent.ProcessRef) -> None:
        # the process closed its stdin or is gone: what is left unread belongs to nobody
        with log.passing_over("copy the input", BufferzoneError):
            while self.stdin >= 0 and (data := self._next_input()):
                client.call("Write", agent.WriteRequest(id=ref.id, exec_id=ref.exec_id, data=data), Empty)
            client.call("CloseStdin", ref, Empty)

    def _next_input(self) -> bytes:
        """The next bytes of stdin; empty at end of file, after `close_stdin` (what waits is read first) or an
        error.
        """
        poll = select.poll()
        poll.register(self.stdin, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll(0 if self._stdin_gone else None))
            if self.stdin in ready:
                try:
                    return os.read(self.stdin, agent.CHUNK)
                except OSError as error:
                    if error.errno == errno.EAGAIN:
                        continue
                    return b""
            if self._stdin_gone:
                return b""


class _Copy:
    """One output of a process on its way to our reader. `ended` is set once all is delivered that the process
    itself wrote, `is_done` once all is that anybody did.
    """

    def __init__(self, client: AgentClient, request: agent.ReadRequest, fd: int) -> None:
        self._client, self._request, self.fd = client, request, fd
        self.ended, self.is_done = threading.Event(), False

    def run(self, first: Pending | None) -> bool:
        """Copy until end of file; False when our reader was gone before. `first`: the answer to come."""
        while True:
            reply = first.result(agent.ReadResponse) if first is not None else self._read()
            first = None
            if reply.data and self.fd >= 0 and not write_all(self.fd, reply.data):
                self._close_output()  # the process gets EPIPE, as it would from the host's pipe
                return False
            if reply.ended:
                self.ended.set()
            elif not reply.data:
                return True

    def break_off(self) -> None:
        """Nobody reads it: have the guest end it."""
        with log.passing_over("close an output", BufferzoneError):  # the VM is gone, and so is the output
            self._close_output()

    def _read(self) -> agent.ReadResponse:
        return self._client.call("Read", self._request, agent.ReadResponse)

    def _close_output(self) -> None:
        self._client.call("CloseOutput", self._request, Empty)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _widen(fd: int) -> None:
    """Make a pipe hold more than one call takes: a call costs milliseconds, whatever it carries."""
    if fd < 0:
        return
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4 * agent.CHUNK)
    except OSError:
        pass  # no pipe, or the user's share of pipe memory is used up: more calls then


def _is_empty(fd: int) -> bool:
    """Whether there is no input and never will be, as far as can be told without taking any."""
    if fd < 0:
        return True
    try:
        if os.fstat(fd).st_rdev == _NULL_DEVICE:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return [event & (select.POLLIN | select.POLLHUP) for _, event in poll.poll(0)] == [select.POLLHUP]
    except OSError:
        return False


def _read_request(ref: agent.ProcessRef, stream: int) -> agent.ReadRequest:
    return agent.ReadRequest(id=ref.id, exec_id=ref.exec_id, stream=stream, limit=agent.CHUNK)


def write_all(fd: int, data: bytes) -> bool:
    """Write everything, waiting as long as it takes; False when the reader is gone."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            return False
    return True


def open_stdio(
    stdin: str, stdout: str, stderr: str, fds: list[int], logged: tuple[str, str] = ("", "")
) -> Stdio:
    """Open the three URIs; `fds` are the request's descriptors, all owned from now on, used or not.

    One after the third of them gets a byte when stderr has ended: our waiter has that open, too.
    `logged`: the id of the process and containerd's namespace, for a log program, which takes both outputs.
    Raises `CallerError` for a URI we do not know and `HostError` when opening fails.
    """
    opened: list[int] = []
    keep: list[int] = []
    logger = None
    try:
        if stdout.startswith(loggers.SCHEME):
            ends = [_open_end(stdin, "stdin", fds, opened, keep)]
            logger = loggers.start(stdout, *logged)
            ends += [logger.stdout, logger.stderr]
        else:
            uris = (stdin, stdout, stderr)
            ends = [_open_end(uri, name, fds, opened, keep) for uri, name in zip(uris, _NAMES, strict=True)]
        notice = os.dup(fds[3]) if len(fds) > 3 else -1
    except BaseException:
        for fd in (*opened, *keep):
            os.close(fd)
        raise
    finally:
        for fd in fds:
            os.close(fd)
    return Stdio(*ends, keep=tuple(keep), logger=logger, notice=notice)


_NAMES = ("stdin", "stdout", "stderr")


def _open_end(uri: str, name: str, fds: list[int], opened: list[int], keep: list[int]) -> int:
    if not uri:
        return -1
    try:
        fd = _open_uri(uri, name, fds, keep)
    except OSError as error:
        raise HostError(f"cannot open {name} {uri}: {error.strerror}", code="stdio") from error
    opened.append(fd)
    return fd


def _open_uri(uri: str, name: str, fds: list[int], keep: list[int]) -> int:
    if uri.startswith("fd:"):
        index = int(uri[3:]) if uri[3:].isdigit() else len(fds)
        if index >= len(fds):
            raise CallerError(f"{name}: no descriptor {uri} came with the request")
        return os.dup(fds[index])  # os.dup is close-on-exec
    if uri.startswith("file://"):
        os.makedirs(os.path.dirname(uri[7:]), exist_ok=True)
        return os.open(uri[7:], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if "://" in uri:
        raise CallerError(
            f"{name}: unsupported stdio scheme: {uri}", hint="a fifo path, file://, binary:// or nothing"
        )
    if name == "stdin":
        return os.open(uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # A reader of our own keeps the fifo alive while containerd's client detaches (no EPIPE).
    keep.append(os.open(uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return os.open(uri, os.O_WRONLY | os.O_CLOEXEC)
