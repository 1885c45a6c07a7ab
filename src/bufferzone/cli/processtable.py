"""The container's processes as a /proc that host programs can read: what `podman top` shows.

Podman joins the mount namespace of the pid it was given and reads /proc there. In the waiter's namespace that
is a tmpfs of ours, filled with the guest's own table at the moment somebody opens it: fanotify lets the
reader wait until the agent has answered. Everything in it is the guest's word; there are no links to anything
of the host. Source: proc(5); the files are those that containers/psgo reads.
"""

from __future__ import annotations

import os

from bufferzone.linux import fanotify
from bufferzone.linux import mount as mnt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.wire.agent import ProcessInfo

_PROC = "/proc"
_MOST = 4096
_TICKS = 100  # USER_HZ is 100 on every architecture that we run on
_FLAGS = mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC


class ProcessTable:
    """The tmpfs on /proc of our mount namespace; `fd` is readable when somebody waits for its content."""

    def __init__(self) -> None:
        with open("/proc/stat", "rb") as file:
            self._boot_s = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))

    def show(self) -> None:
        """Mount it; raises OSError."""
        mnt.mount("bufferzone-processes", _PROC, "tmpfs", _FLAGS, "size=4m,nr_inodes=64k,mode=555")
        self._directory = os.open(_PROC, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._write("stat", b"btime %d\n" % self._boot_s)
        self._shown: dict[str, None] = {}
        self.fd = fanotify.watch_opening(_PROC)

    @property
    def descriptors(self) -> set[int]:
        """What must stay open."""
        return {self.fd, self._directory}

    def waiting(self) -> list[int]:
        """Those who wait, for `answer`."""
        return fanotify.waiting(self.fd)

    def answer(self, tokens: list[int], processes: list[ProcessInfo]) -> None:
        """Show `processes` and let the readers go on, whatever happens."""
        try:
            self._refresh(processes[:_MOST])
        finally:
            fanotify.allow(self.fd, tokens)

    def _refresh(self, processes: list[ProcessInfo]) -> None:
        for name in self._shown:
            self._remove(name)
        names = {process.pid: process.ns_pid or process.pid for process in processes}
        self._shown = {str(pid): None for pid in names.values()}
        for process in processes:
            self._add(process, names[process.pid], names.get(process.ppid, 0))

    def _add(self, process: ProcessInfo, pid: int, parent: int) -> None:
        name = str(pid)
        for directory in (name, f"{name}/attr", f"{name}/ns"):
            os.mkdir(directory, 0o555, dir_fd=self._directory)
        words = process.command.replace("\n", " ")
        comm = os.path.basename(words.split(" ")[0])[:15] or "?"
        ticks = process.cpu_ms * _TICKS // 1000
        start = max(0, process.start_s - self._boot_s) * _TICKS
        tty = _tty_number(process.tty)
        before = f"{pid} ({comm}) S {parent} {pid} {pid} {tty} -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 {start}"
        self._write(f"{name}/stat", f"{before} 0 0{' 0' * 28}\n".encode())
        self._write(f"{name}/status", _status(comm, pid, parent, process.uid).encode())
        self._write(f"{name}/cmdline", words.encode("utf-8", "replace").replace(b" ", b"\0") + b"\0")
        self._write(f"{name}/attr/current", b"")
        for kind in ("pid", "user"):
            os.symlink(f"{kind}:[0]", f"{name}/ns/{kind}", dir_fd=self._directory)

    def _write(self, path: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o444, dir_fd=self._directory)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def _remove(self, name: str) -> None:
        for path in ("stat", "status", "cmdline", "attr/current", "ns/pid", "ns/user"):
            os.unlink(f"{name}/{path}", dir_fd=self._directory)
        for path in (f"{name}/attr", f"{name}/ns", name):
            os.rmdir(path, dir_fd=self._directory)


def _status(comm: str, pid: int, parent: int, uid: int) -> str:
    ids = "\t".join([str(uid)] * 4)
    return (
        f"Name:\t{comm}\nState:\tS (sleeping)\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\n"
        f"Uid:\t{ids}\nGid:\t{ids}\nGroups:\t\nNStgid:\t{pid}\nNSpid:\t{pid}\n"
    )


def _tty_number(name: str) -> int:
    """`pts/N` as a device number: Unix98 terminals start at major 136."""
    number = name.removeprefix("pts/")
    return (136 << 8) + int(number) if number != name and number.isdigit() and len(number) < 3 else 0
