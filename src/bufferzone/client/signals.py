"""Signal names and numbers of Linux on x86-64, and which of them a waiter passes on. Source: signal(7).

Not from `signal`: that imports enum.
"""

from __future__ import annotations

from bufferzone.errors import UsageError
from bufferzone.log import shown

HUP, INT, QUIT, KILL, PIPE, TERM, CHLD, WINCH = 1, 2, 3, 9, 13, 15, 17, 28
RTMIN, RTMAX = 34, 64  # glibc keeps 32 and 33
_NAMES = """
HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU
URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS
"""
NUMBERS = {name: number for number, name in enumerate(_NAMES.split(), 1)} | {"IOT": 6, "POLL": 29, "CLD": 17}

#: what cannot or need not be caught: KILL and STOP, faults of our own, job control, and what means us alone
_OURS = {"ILL", "TRAP", "BUS", "FPE", "KILL", "SEGV", "PIPE", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU"}
_OURS |= {"URG", "SYS", "WINCH", "CLD"}
FORWARDED = tuple(
    sorted({n for name, n in NUMBERS.items() if name not in _OURS} | set(range(RTMIN, RTMAX + 1)))
)


def number_of(text: str) -> int:
    """`KILL`, `SIGKILL`, `sigkill`, `9`, `RTMIN+3` or `SIGRTMAX-1` as a number; raises `UsageError`.

    0 is no signal, but the question whether there is somebody to get one: kill(2).
    """
    if text.isascii() and text.isdigit() and len(text) < 4:
        if int(text) <= RTMAX:
            return int(text)
        raise UsageError(f"unknown signal: {text}", hint=f"0 to {RTMAX}")
    name = text.upper().removeprefix("SIG")
    if name in NUMBERS:
        return NUMBERS[name]
    for prefix, base, sign in (("RTMIN", RTMIN, "+"), ("RTMAX", RTMAX, "-")):
        if name == prefix:
            return base
        digits = name.removeprefix(prefix + sign)
        if digits != name and digits.isascii() and digits.isdigit() and int(digits[:4]) <= RTMAX - RTMIN:
            return base + int(sign + digits)
    raise UsageError(f"unknown signal: {shown(text)}")
