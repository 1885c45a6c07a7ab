"""What sandboxes may leave on a machine, found by looking: processes, mounts, cgroups, sockets, state.

    watch = Watch(root)         # before anything is started
    ...                         # start, break and delete containers below the state root `root`
    watch.assert_nothing_left()

The test process becomes a subreaper, as conmon and containerd's shim are: whatever its verbs leave running
becomes its child, so "ours" is exact on a machine where others run sandboxes too.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from bufferzone.linux.process import become_subreaper

CGROUPS = Path("/sys/fs/cgroup")


class Watch:
    """Everything below the state root `root`, and every descendant of this process, from now on.

    `mark` is what names of cgroups made for these containers contain.
    """

    def __init__(self, root: Path, *, mark: str = "") -> None:
        become_subreaper()
        self.root = root
        self._mark = mark
        self._before = set(descendants())

    def processes(self) -> list[str]:
        """`PID name` of every living descendant that is new; zombies of ours are reaped."""
        found = []
        for pid in descendants():
            if pid not in self._before and not _reaped(pid):
                found.append(f"process {pid} {name_of(pid)}")
        return found

    def left(self) -> list[str]:
        """One line per thing that is still there."""
        found = self.processes()
        found += [f"mount {point}" for point in mounts_with(str(self.root))]
        found += [f"socket {path}" for path in sockets_below(str(self.root))]
        if self._mark:
            found += [f"cgroup {path}" for path in cgroups_with(self._mark)]
        if self.root.is_dir():
            found += [f"state {p}" for p in sorted(self.root.iterdir()) if p.name != "kvm-probe.json"]
        return found

    def assert_nothing_left(self, timeout_s: float = 60.0) -> None:
        """What ends by itself (a waiter that was told) may take a moment."""
        deadline = time.monotonic() + timeout_s
        left = self.left()
        while left and time.monotonic() < deadline:
            select.select([], [], [], 0.05)
            left = self.left()
        assert not left, "left behind: " + "; ".join(left)


def descendants(ancestor: int | None = None) -> list[int]:
    """All processes below `ancestor` (this process), zombies too; not the maker of templates and its own."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, queue = [], [ancestor or os.getpid()]
    while queue:
        below = [pid for pid in children.get(queue.pop(), []) if not _makes_template(pid)]
        found += below
        queue += below
    return found


def _makes_template(pid: int) -> bool:
    """The background maker of warm starts: it belongs to no container and ends by itself within seconds."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0template\0")
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def _reaped(pid: int) -> bool:
    """Whether it has ended; a zombie that is our child is reaped."""
    if is_alive(pid):
        return False
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return not _stat(pid)
    return True


def name_of(pid: int) -> str:
    """Its comm."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def mounts_with(text: str) -> list[str]:
    """Mount points in this mount namespace whose line in mountinfo contains `text`."""
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return [line.split(" ")[4] for line in lines if text in line]


def sockets_below(directory: str) -> list[str]:
    """Unix sockets bound to a path below `directory`."""
    lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    paths = {line.split()[7] for line in lines if len(line.split()) > 7}
    return sorted(path for path in paths if path.startswith(directory))


def cgroups_with(mark: str) -> list[str]:
    """Cgroup directories whose name contains `mark`, in every hierarchy."""
    return sorted(path for path, _, _ in os.walk(CGROUPS) if mark in os.path.basename(path))


def descriptors(pid: int) -> list[str]:
    """What a process has open, sorted; numbers of sockets and pipes are left out."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(entry.path).split(":[")[0])
        except FileNotFoundError:
            continue  # closed meanwhile
    return sorted(found)
