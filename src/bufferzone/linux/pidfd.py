"""Waiting for a process, and ending one that takes too long, by a descriptor: its pid may be another's soon.

Source: pidfd_open(2), pidfd_send_signal(2). Reaping is the parent's business.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # signal.py imports enum

_KILL = 9


def await_end(fd: int, timeout_s: float | None) -> bool:
    """Whether the process has ended within the time; None is for ever."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


def kill(fd: int) -> None:
    """SIGKILL; nothing happens to one that has ended."""
    try:
        _signal.pidfd_send_signal(fd, _KILL)
    except ProcessLookupError:
        pass


def end(fd: int, timeout_s: float, killed_s: float = 10.0) -> bool:
    """Whether it ended by itself within `timeout_s`; else it is killed, and `killed_s` waited for that."""
    if await_end(fd, timeout_s):
        return True
    kill(fd)
    await_end(fd, killed_s)
    return False
