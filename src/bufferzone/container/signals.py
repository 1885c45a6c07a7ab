"""Signal dispositions of a process about to become somebody else's program."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # `signal` imports enum: 10 ms under TCG


_KILL, _STOP = 9, 19


def restore() -> None:
    """Default disposition for every signal and nothing blocked: ignored signals (Python's SIGPIPE)
    survive execve(2).
    """
    _signal.set_wakeup_fd(-1)
    for number in range(1, 65):
        if number in (_KILL, _STOP, 32, 33):  # 32 and 33 belong to the C library
            continue
        if _signal.getsignal(number) != _signal.SIG_DFL:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
