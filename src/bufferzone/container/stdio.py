"""Standard streams of a container process, from the agent's end: blocking reads and writes as pending
replies.

Nothing is buffered here: output stays in the kernel's pipe until a Read asks for it, so a reader that stops
blocks the writer and nothing else. At most one Read per stream and one Write per process wait at a time.
"""

from __future__ import annotations

import errno
import os

from bufferzone.container.loop import READ, WRITE
from bufferzone.errors import CallerError, GuestError, StateError
from bufferzone.linux import terminal as tty
from bufferzone.linux.terminal import unread
from bufferzone.wire.agent import CHUNK, STDERR, STDOUT, ReadResponse
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.container.loop import Loop
    from bufferzone.container.reply import Reply

PIPE_SIZE = 1 << 20
_F_SETPIPE_SZ = 1031


class Output:
    """The read end of a pipe, or a terminal's master. Owns `fd` until end of file or `close`."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._loop, self._fd = loop, fd
        self._pending: tuple[Reply, int] | None = None
        self._draining = False
        self._own: int | None = None  # bytes that may be the process's own, of one that has ended
        os.set_blocking(fd, False)

    def read(self, limit: int, reply: Reply) -> None:
        """Answer with up to `limit` bytes (0 and more than CHUNK mean CHUNK) once there are any, or with
        none at EOF.

        Raises `StateError` `read-pending` while another read of this stream waits.
        """
        if self._pending is not None and self._pending[0].awaited:
            raise StateError("another read of this stream is pending", code="read-pending")
        self._pending = (reply, min(limit or CHUNK, CHUNK))
        self._ready(0)

    def resume(self) -> None:
        """Somebody may be waiting for bytes that were left while the connection was held."""
        if self._fd >= 0 and self._pending is not None:
            self._ready(0)

    def drain(self) -> None:
        """The process has ended: after what is there comes end of file.

        Even when a descendant still holds the other end: who waits for the process must not wait for that.
        """
        self._draining = True
        if self._pending is not None:
            self._ready(0)

    def outlive(self) -> None:
        """The process has ended, and its descendants may write on: whoever reads is told once it has got
        what is there.
        """
        if self._fd >= 0:
            self._own = unread(self._fd)
        if self._pending is not None:
            self._ready(0)

    def close(self) -> None:
        """Give up the descriptor; a waiting read gets end of file, a writer EPIPE."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._pending is not None:
            self._pending[0].ok(ReadResponse())
            self._pending = None

    def _ready(self, events: int) -> None:
        if self._fd < 0 or self._pending is None:
            self.close()
            return
        reply, limit = self._pending
        if not reply.awaited:  # the connection it came over is gone: leave the bytes to the next one
            self._loop.unwatch(self._fd)
            return
        try:
            data = os.read(self._fd, limit)
        except BlockingIOError:
            if self._draining:
                self.close()
            elif self._own is not None:
                self._answer(reply, b"")
            elif not events:
                self._loop.watch(self._fd, READ, self._ready)
            return
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: every slave of the terminal is closed
                raise
            data = b""
        if not data:
            self.close()
            return
        self._answer(reply, data)

    def _answer(self, reply: Reply, data: bytes) -> None:
        self._loop.unwatch(self._fd)
        self._pending = None
        ended = False
        if self._own is not None:
            left = self._own - len(data)
            ended, self._own = left <= 0, left if left > 0 else None
        reply.ok(ReadResponse(data=data, ended=ended))


class Input:
    """The write end of a pipe, or a duplicate of a terminal's master. Owns `fd` until `close`."""

    def __init__(self, loop: Loop, fd: int, *, terminal: bool) -> None:
        self._loop, self._fd, self._terminal = loop, fd, terminal
        self._pending: tuple[Reply, memoryview] | None = None
        self._closing = False
        os.set_blocking(fd, False)

    def write(self, data: bytes, reply: Reply) -> None:
        """Answer once all of `data` is written; `GuestError` `stdin-closed` once nobody reads it any more.

        Raises `StateError` `write-pending` while another write waits.
        """
        if self._fd < 0 or self._closing:
            raise GuestError("standard input is closed", code="stdin-closed")
        if self._pending is not None and self._pending[0].awaited:
            raise StateError("another write is pending", code="write-pending")
        if self._pending is not None:  # of an earlier connection, which ended in the middle of it
            data = bytes(self._pending[1]) + data
        self._pending = (reply, memoryview(data))
        self._ready(0)

    def finish(self) -> None:
        """End of file for the process, after what is still being written.

        A terminal stays open, as with runc.
        """
        if self._terminal:
            return
        self._closing = True
        if self._pending is None:
            self.close()

    def close(self) -> None:
        """Give up the descriptor; a waiting write fails."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._pending is not None:
            self._pending[0].fail(GuestError("standard input is closed", code="stdin-closed"))
            self._pending = None

    def _ready(self, events: int) -> None:
        if self._fd < 0 or self._pending is None:
            self.close()
            return
        reply, data = self._pending
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BlockingIOError:
            self._pending = (reply, data)
            if not events:
                self._loop.watch(self._fd, WRITE, self._ready)
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.close()
            return
        self._loop.unwatch(self._fd)
        self._pending = None
        reply.ok(Empty())
        if self._closing:
            self.close()


class Streams:
    """The standard streams of one process: pipes from the beginning, or a terminal once it is open.

    `child_ends` are what the process gets, None for a terminal; who launches the process closes them. `owner`
    is the (uid, gid), as the guest counts, that pipes belong to, like runc's.
    """

    def __init__(self, loop: Loop, *, terminal: bool, owner: tuple[int, int]) -> None:
        self._loop = loop
        self._outputs: dict[int, Output] = {}
        self._input: Input | None = None
        self._master = -1
        self.child_ends = None if terminal else self._make_pipes(owner)

    def _make_pipes(self, owner: tuple[int, int]) -> tuple[int, int, int]:
        (stdin, ours), pairs = make_pipe(), [make_pipe(), make_pipe()]
        self._input = Input(self._loop, ours, terminal=False)
        for stream, (ours, _) in zip((STDOUT, STDERR), pairs, strict=True):
            self._outputs[stream] = Output(self._loop, ours)
        theirs = (stdin, pairs[0][1], pairs[1][1])
        for fd in theirs:
            if any(owner):
                os.fchown(fd, *owner)
        return theirs

    def use_terminal(self, master: int) -> None:
        """The process has opened its terminal; `master` is ours from now on."""
        self._master = master
        self._outputs[STDOUT] = Output(self._loop, os.dup(master))
        self._input = Input(self._loop, os.dup(master), terminal=True)

    def read(self, stream: int, limit: int, reply: Reply) -> bool:
        """Read one stream; False where there is none: not yet, or never (a terminal's stderr).

        Raises `CallerError` for a number that no stream has.
        """
        if stream not in (STDOUT, STDERR):
            raise CallerError(f"no such stream: {stream}")
        if stream not in self._outputs:
            return False
        self._outputs[stream].read(limit, reply)
        return True

    def write(self, data: bytes, reply: Reply) -> None:
        """See `Input.write`."""
        if self._input is None:
            raise GuestError("standard input is closed", code="stdin-closed")
        self._input.write(data, reply)

    def close_stdin(self) -> None:
        """End of file for the process."""
        if self._input is not None:
            self._input.finish()

    def close_output(self, stream: int) -> None:
        """Nobody reads `stream` any more: who writes to it gets EPIPE."""
        if stream in self._outputs:
            self._outputs[stream].close()

    def resize(self, width: int, height: int) -> None:
        """The terminal's size in characters; raises `StateError` without a terminal."""
        if self._master < 0:
            raise StateError("the process has no terminal", code="no-terminal")
        if max(width, height) > 0xFFFF:
            raise CallerError(f"impossible terminal size: {width}x{height}")
        tty.resize(self._master, width, height)

    def resume(self) -> None:
        """The connection is held no longer."""
        for output in self._outputs.values():
            output.resume()

    def process_ended(self, *, outlived: bool) -> None:
        """No more input; what was written can still be read, and what descendants write: `outlived`."""
        if self._input is not None:
            self._input.close()
        for output in self._outputs.values():
            if outlived:
                output.outlive()
            else:
                output.drain()

    def close(self) -> None:
        """Give up every descriptor; waiting reads get end of file."""
        for output in self._outputs.values():
            output.close()
        if self._input is not None:
            self._input.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def make_pipe() -> tuple[int, int]:
    """A close-on-exec pipe of 1 MiB where the kernel allows it: (read end, write end)."""
    import fcntl

    ends = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(ends[0], _F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass  # over fs.pipe-user-pages-soft: the default of 64 KiB works too
    return ends
