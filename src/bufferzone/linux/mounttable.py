"""The mounts of the calling thread's mount namespace, as the kernel's table has them.

Source: proc_pid_mountinfo(5), proc_pid_fdinfo(5); Linux fs/proc_namespace.c, show_mountinfo().
"""

from __future__ import annotations

import os

from bufferzone.record import Record

#: blanks, tabs, line feeds and backslashes are octal numbers there
_ESCAPED = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class Mounted(Record):
    """One mount: its id, which directory of its file system is at `point`, what kind of file system that is.

    `options` are the file system's own, as the table has them: escaped, with commas between.
    """

    id: int
    root: str
    point: str
    kind: str
    options: str


def rows() -> list[Mounted]:
    """All of them, in the order in which they were mounted."""
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [_row(line) for line in file]


def at(path: str) -> Mounted | None:
    """The mount that the directory `path` is the root of; None: there is none, or it is one below. Raises
    OSError.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as file:
            id = next((int(line.split()[1]) for line in file if line.startswith("mnt_id:")), -1)
    finally:
        os.close(fd)
    found = next((row for row in rows() if row.id == id), None)
    return found if found is not None and found.point == os.path.realpath(path) else None


def _row(line: str) -> Mounted:
    left, _, right = line.partition(" - ")
    words, of_type = left.split(), right.rstrip("\n").split(" ")
    return Mounted(
        id=int(words[0]),
        root=_unescaped(words[3]),
        point=_unescaped(words[4]),
        kind=of_type[0],
        options=of_type[2] if len(of_type) > 2 else "",
    )


def _unescaped(text: str) -> str:
    for code, character in _ESCAPED:
        text = text.replace(code, character)
    return text
