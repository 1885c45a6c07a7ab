"""The container's processes as a /proc that host programs can read: what `podman top` shows.

Podman joins the mount namespace of the pid it was given and reads /proc there. In the waiter's namespace that
is a tmpfs of ours, filled with the guest's own table at the moment somebody opens it: fanotify lets the
reader wait until the agent has answered. Everything in it is the guest's word; there are no links to anything
of the host. Source: proc(5); the files are those that containers/psgo reads.
"""

from __future__ import annotations

import os

from bufferzone.errors import BufferzoneError
from bufferzone.linux import fanotify
from bufferzone.linux import mount as mnt
from bufferzone.wire import agent, shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.client.connection import Client
    from bufferzone.wire.agent import ProcessInfo

_PROC = "/proc"
_ANSWER_S = 10.0
#: rows shown; each takes three pages of the tmpfs and nine inodes
_MOST = 2048
_OPTIONS = "size=32m,nr_inodes=20k,mode=555"
_PID_LIMIT = 1 << 22  # PID_MAX_LIMIT of a 64-bit kernel
_COMMAND_BYTES = 4000  # a page
_TICKS = 100  # USER_HZ is 100 on every architecture that we run on
_LONGEST_S = 1 << 32  # readers keep ticks in 64 bits
_FLAGS = mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC
_FILES = ("stat", "status", "cmdline", "attr/current", "ns/pid", "ns/user")


class ProcessTable:
    """The tmpfs on /proc of our mount namespace; `fd` is readable when somebody waits for its content."""

    def __init__(self) -> None:
        with open("/proc/stat", "rb") as file:
            self._boot_s = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
        self._shown: list[str] = []
        self._directory = self._tree = self.fd = -1

    def make(self) -> None:
        """Make it, mounted nowhere yet, in a mount namespace of ours that shows the host; raises OSError."""
        mnt.mount("bufferzone-processes", _PROC, "tmpfs", _FLAGS, _OPTIONS)
        self._tree = mnt.open_tree(_PROC, recursive=False)
        mnt.unmount(_PROC, mnt.MNT_DETACH)

    def show(self) -> bool:
        """Mount it on /proc of the root we are in by now; False when that is no directory. Raises OSError.

        The image says what /proc is: were a link followed, it could lead to a directory of the host's.
        """
        place = -1
        try:
            place = os.open(_PROC, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            mnt.move_mount(self._tree, "", at=place)
            self.use(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._tree))
        except (FileNotFoundError, NotADirectoryError):
            return False
        finally:
            for fd in {place, self._tree} - {-1}:
                os.close(fd)
            self._tree = -1
        self.fd = fanotify.watch_opening(self._directory)
        return True

    def use(self, directory: int) -> None:
        """Keep the files in the empty directory that the descriptor `directory` refers to; owns it."""
        self._directory = directory
        self._write("stat", b"btime %d\n" % self._boot_s)

    @property
    def descriptors(self) -> set[int]:
        """What must stay open."""
        return {self.fd, self._directory}

    def show_to_readers(self, container_id: str, shim_client: Client) -> None:
        """Somebody is about to read: let them read what the guest says now."""
        tokens, found = self.waiting(), []
        try:
            ref = agent.ProcessRef(id=container_id)
            answer = shim_client.call("Processes", ref, service=shim.SERVICE, timeout_s=_ANSWER_S)
            found = answer.processes
        except BufferzoneError:
            pass  # paused, or at its end: an empty table
        self.answer(tokens, found)

    def waiting(self) -> list[int]:
        """Those who wait, for `answer`."""
        return fanotify.waiting(self.fd)

    def answer(self, tokens: list[int], processes: list[ProcessInfo]) -> None:
        """Show `processes` and let the readers go on, whatever happens."""
        try:
            self.fill(processes)
        finally:
            fanotify.allow(self.fd, tokens)

    def fill(self, processes: list[ProcessInfo]) -> None:
        """Show `processes` in place of those before. What does not fit, or is no process, is left out."""
        for name in self._shown:
            self._remove(name)
        self._shown = []
        rows: dict[int, ProcessInfo] = {}
        for process in processes[:_MOST]:
            rows.setdefault(process.ns_pid or process.pid, process)
        parents = {process.pid: pid for pid, process in rows.items()}
        try:
            for pid, process in rows.items():
                if 0 < pid <= _PID_LIMIT:
                    self._add(process, pid, min(parents.get(process.ppid, 0), _PID_LIMIT))
        except OSError:
            pass  # the tmpfs is full: a shorter table, and a container that lives on

    def _add(self, process: ProcessInfo, pid: int, parent: int) -> None:
        name = str(pid)
        self._shown.append(name)
        for directory in (name, f"{name}/attr", f"{name}/ns"):
            os.mkdir(directory, 0o555, dir_fd=self._directory)
        words = "".join(c if c.isprintable() else "?" for c in process.command[:_COMMAND_BYTES])
        comm = os.path.basename(words.split(" ")[0])[:15] or "?"
        ticks = min(process.cpu_ms // 1000, _LONGEST_S) * _TICKS + process.cpu_ms % 1000 * _TICKS // 1000
        start = min(max(0, process.start_s - self._boot_s), _LONGEST_S) * _TICKS
        tty = _tty_number(process.tty)
        before = f"{pid} ({comm}) S {parent} {pid} {pid} {tty} -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 {start}"
        self._write(f"{name}/stat", f"{before} 0 0{' 0' * 28}\n".encode())
        self._write(f"{name}/status", _status(comm, pid, parent, process.uid & 0xFFFFFFFF).encode())
        self._write(f"{name}/cmdline", words.encode()[:_COMMAND_BYTES].replace(b" ", b"\0") + b"\0")
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
        """Remove a row, or what there is of it."""
        for path in _FILES:
            try:
                os.unlink(f"{name}/{path}", dir_fd=self._directory)
            except FileNotFoundError:
                pass
        for path in (f"{name}/attr", f"{name}/ns", name):
            try:
                os.rmdir(path, dir_fd=self._directory)
            except FileNotFoundError:
                pass


def _status(comm: str, pid: int, parent: int, uid: int) -> str:
    ids = "\t".join([str(uid)] * 4)
    return (
        f"Name:\t{comm}\nState:\tS (sleeping)\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{parent}\n"
        f"Uid:\t{ids}\nGid:\t{ids}\nGroups:\t\nNStgid:\t{pid}\nNSpid:\t{pid}\n"
    )


def _tty_number(name: str) -> int:
    """`pts/N` as a device number: Unix98 terminals start at major 136."""
    number = name.removeprefix("pts/")
    known = number != name and number.isdecimal() and number.isascii() and len(number) < 3
    return (136 << 8) + int(number) if known else 0
