"""Process tables out of /proc; proc(5)."""

from __future__ import annotations

import os

from bufferzone.container.kernel_files import read
from bufferzone.wire.agent import ProcessInfo

_COMMAND_LIMIT = 4096


def table(pids: list[int]) -> list[ProcessInfo]:
    """A row for each process that is still there, in order of pid."""
    booted_s = 0
    for line in read("/proc/stat").splitlines():
        if line.startswith("btime "):
            booted_s = int(line.split()[1])
    ticks = os.sysconf("SC_CLK_TCK")
    rows = (_row(pid, booted_s, ticks) for pid in sorted(pids))
    return [row for row in rows if row is not None]


def _row(pid: int, booted_s: int, ticks: int) -> ProcessInfo | None:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read().decode("utf-8", "surrogateescape")
        ns_pid = _ns_pid(pid)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read(_COMMAND_LIMIT).rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        return None  # it has ended
    name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
    return ProcessInfo(
        pid=pid,
        state=fields[0],
        ppid=int(fields[1]),
        uid=uid,
        start_s=booted_s + int(fields[19]) // ticks,
        cpu_ms=(int(fields[11]) + int(fields[12])) * 1000 // ticks,
        tty=_tty(int(fields[4])),
        ns_pid=ns_pid,
        command=command.decode("utf-8", "replace") or f"[{name}]",
    )


def _ns_pid(pid: int) -> int:
    """The pid in the innermost PID namespace, which is the container's."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def _tty(number: int) -> str:
    """tty_nr as ps shows it: Unix98 terminals are majors 136 to 143."""
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else "?"
