"""The event loop: epoll(7) and callbacks, one thread. No timers, no threads, nothing that sleeps.

A callback that raises is reported to stderr and its descriptor is no longer watched: the agent goes on.
"""

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal  # `signal` imports enum: 10 ms under TCG

SIGCHLD = 17
READ, WRITE, PRIORITY = select.EPOLLIN, select.EPOLLOUT, select.EPOLLPRI


class Loop:
    """Callbacks by descriptor, and one for the end of children.

    Owns the epoll and the signal wake-up descriptors.
    """

    def __init__(self, on_child: Callable[[], None]) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._on_child = on_child
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.signal(SIGCHLD, lambda number, frame: None)
        _signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self.watch(self._wake_read, READ, self._woken)
        self.running = True
        self.before_waiting: Callable[[], None] = lambda: None

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` whenever `fd` is ready; replaces an earlier watch of the same
        descriptor.
        """
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; must precede the close of `fd`. Unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def run(self) -> None:
        """Serve until `running` is false."""
        while self.running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for events and handle them."""
        try:
            self.before_waiting()
        except Exception as error:
            report(error)
        for fd, events in self._epoll.poll():
            callback = self._callbacks.get(fd)
            if callback is None:
                continue  # unwatched by an earlier callback of this round
            try:
                callback(events)
            except Exception as error:
                report(error)
                if fd != self._wake_read:
                    self.unwatch(fd)

    def _woken(self, events: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        self._on_child()


def report(error: BaseException) -> None:
    """One line about an unexpected exception on stderr: the VM's console."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
    warn(f"unexpected {type(error).__name__}: {error}{where}")


def warn(text: str) -> None:
    """One line on stderr."""
    try:
        sys.stderr.write(f"bufferzone agent: {text}\n")
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass  # no console: nothing to tell it to
