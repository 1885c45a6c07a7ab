"""What `ps` shows as this process's command line.

Source: proc(5), cmdline: the kernel shows the memory between arg_start and arg_end.
"""

from __future__ import annotations

import os

_ARG_START, _ARG_END = 47, 48  # fields 48 and 49 of /proc/self/stat; proc(5)


def set_command_line(words: list[str]) -> None:
    """Show `words` from now on, cut where the memory that the kernel gave us ends. Raises OSError."""
    with open("/proc/self/stat", "rb", buffering=0) as file:
        # the name in parentheses may hold blanks: fields 1 and 2 end at the last parenthesis
        fields = file.read().rpartition(b")")[2].split()
    start, end = (int(fields[at - 2]) for at in (_ARG_START, _ARG_END))
    room = end - start
    text = b"\0".join(os.fsencode(word) for word in words)[: max(0, room - 1)]
    fd = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, text.ljust(room, b"\0"), start)
    finally:
        os.close(fd)
