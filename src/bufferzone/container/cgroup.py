"""One cgroup v2 directory per container: limits, membership, freezing, killing, counters, events.

A limit that was asked for and cannot be applied is an error (runtime-spec: create MUST fail); what was not
asked for is never touched, so that a kernel without some controller still runs containers. Source:
Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os

from bufferzone.container import devices
from bufferzone.container.kernel_files import read, write
from bufferzone.container.loop import PRIORITY
from bufferzone.errors import GuestError
from bufferzone.linux import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.container.loop import Loop

_FLAT = ("memory.stat", "cpu.stat", "memory.events", "pids.events")
_SINGLE = (
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
)


def enable_controllers(path: str) -> None:
    """Hand every controller of the cgroup `path` down to its children; those that refuse are left out.

    Those that are handed down already are not touched: the kernel lets a writer wait for whatever was
    removed below, and each write costs (cgroup_lock_and_drain_offline in kernel/cgroup/cgroup.c).
    """
    handed_down = read(os.path.join(path, "cgroup.subtree_control")).split()
    for name in read(os.path.join(path, "cgroup.controllers")).split():
        if name in handed_down:
            continue
        try:
            write(os.path.join(path, "cgroup.subtree_control"), "+" + name)
        except OSError:
            pass  # e.g. cpu with real-time tasks around: its limits are refused once they are asked for


class Cgroup:
    """The cgroup at `path`, made by the constructor. `remove` ends it."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop, self.path = loop, path
        self._watched: list[int] = []
        self._filter = -1  # the program that decides about devices
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            os.makedirs(parent, 0o755)
        enable_controllers(parent)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            os.rmdir(path)  # left behind, and empty: else this raises
            os.mkdir(path, 0o755)

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def apply(self, settings: list[tuple[str, str]]) -> None:
        """Write limits in order; raises `GuestError` `cgroup` naming the file and the value."""
        for names, texts in settings:
            name, text = names, texts
            if "|" in names:
                choice = 0 if os.path.exists(self.file(names.split("|")[0])) else 1
                name, text = names.split("|")[choice], texts.split("|")[choice]
            self._apply_one(name, text)

    def filter_devices(self, program: bytes) -> None:
        """Let `program` (see `devices`; empty: none) decide which devices may be opened and made here and
        below, in place of the one before. Raises `GuestError` `cgroup`; then that one still does.
        """
        if not program and self._filter < 0:
            return
        try:
            made = bpf.load_device_filter(program or devices.ALLOW_ALL)
            try:
                bpf.attach_device_filter(self.path, made, self._filter)
            except OSError:
                os.close(made)
                raise
        except OSError as error:
            text = f"cgroup: cannot set the device rules: {(error.strerror or '').lower()}"
            raise GuestError(text, code="cgroup") from error
        if self._filter >= 0:
            os.close(self._filter)
        self._filter = made

    def change(self, settings: list[tuple[str, str]]) -> None:
        """`apply`, and after an error nothing has changed. A limit below what is used now is refused, in
        runc's words: the kernel would take it and kill.
        """
        for name, text in settings:
            if name == "memory.max" and text.isdigit():
                self._make_room(int(text))
        before = [(name, read(self.file(name)).strip()) for name, _ in settings if "|" not in name]
        try:
            self.apply(settings)
        except GuestError:
            for name, text in reversed(before):
                try:
                    if text:
                        write(self.file(name), text)
                except OSError:
                    pass  # a table of devices
            raise

    def _make_room(self, limit: int) -> None:
        """Have caches freed down to `limit` bytes; raises `GuestError` when more is in use."""
        used = self._number("memory.current")
        if used > limit:
            try:
                write(self.file("memory.reclaim"), str(used - limit))
            except OSError:
                pass  # EAGAIN: not that much could be freed; or a kernel before 5.19
            used = self._number("memory.current")
        if used > limit:
            peak = self._number("memory.peak")
            text = f"unable to set memory limit to {limit} (current usage: {used}, peak usage: {peak})"
            raise GuestError(text, hint="nothing was changed", code="cgroup")

    def _number(self, name: str) -> int:
        text = read(self.file(name)).strip()
        return int(text) if text.isdigit() else 0

    def _apply_one(self, name: str, text: str) -> None:
        try:
            write(self.file(name), text)
        except OSError as error:
            if name == "memory.swap.max" and error.errno == errno.ENOENT and self._swap_limit_is_moot(text):
                return
            if error.errno in (errno.ENOENT, errno.EACCES):
                why = f'controller "{name.partition(".")[0]}" is not available in the guest'
            else:
                why = (error.strerror or "").lower()
            raise GuestError(f"cgroup: cannot set {name} to {text}: {why}", code="cgroup") from error

    def _swap_limit_is_moot(self, text: str) -> bool:
        """Without swap in the guest every swap limit holds, as long as there is a memory controller at
        all.
        """
        return text in ("max", "0") or (
            len(read("/proc/swaps").splitlines()) <= 1 and os.path.exists(self.file("memory.max"))
        )

    def open_procs(self, init_pid: int = 0) -> int:
        """cgroup.procs open for writing: the cgroup's own, or where `init_pid` is now if that takes
        processes only.
        """
        path = self.path
        if init_pid and read(self.file("cgroup.subtree_control")).strip():
            path = self._path_of(init_pid) or path
        return os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    def open_procs_below(self, path: str) -> int:
        """cgroup.procs of a cgroup that the container made, at `path` below its own; raises `GuestError` in
        runc's words.
        """
        place = os.path.normpath(f"{self.path}/{path}/cgroup.procs")
        if not place.startswith(f"{self.path}/"):
            raise GuestError(f"{path} is not a sub cgroup path", code="cgroup")
        try:
            return os.open(place, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            reason = f"{path.rstrip('/')}/cgroup.procs: {(error.strerror or '').lower()}"
            raise GuestError(f"error adding pid to cgroups: {reason}", code="cgroup") from error

    def make_below(self, name: str, memory: int = 0) -> Cgroup:
        """A new cgroup of that name for one process and all it starts, with a limit in bytes, 0: none. What
        exceeds it is killed as a whole. Raises `GuestError` `cgroup`.
        """
        try:
            self._divide()
            made = Cgroup(self._loop, self.file(name))
        except OSError as error:
            raise GuestError(f"cannot make a cgroup: {error.strerror}", code="cgroup") from error
        if memory:
            try:
                made.apply([("memory.max", str(memory)), ("memory.oom.group", "1")])
            except GuestError:
                made.remove()
                raise
        return made

    def _divide(self) -> None:
        """Have the controllers count below: the kernel wants processes in the leaves alone, so those that are
        here move into one.
        """
        if read(self.file("cgroup.subtree_control")).strip() or not read(self.file("cgroup.controllers")):
            return
        leaf = self.file("init")
        if not os.path.isdir(leaf):
            os.mkdir(leaf, 0o755)
        while pids := read(self.file("cgroup.procs")).split():  # who forks meanwhile is in the next round
            for pid in pids:
                try:
                    write(os.path.join(leaf, "cgroup.procs"), pid)
                except ProcessLookupError:
                    pass

    def usage(self) -> tuple[int, int]:
        """Microseconds of CPU time and, where the kernel tells, the most bytes of memory at a time."""
        cpu = dict(_pairs(read(self.file("cpu.stat")))).get("usage_usec", "0")
        return int(cpu), self._number("memory.peak")

    def _path_of(self, pid: int) -> str:
        """The directory of the process, below ours: a container's init (systemd) may have moved itself
        down.
        """
        for directory in self._tree():
            if str(pid) in read(os.path.join(directory, "cgroup.procs")).split():
                return directory
        return ""

    def _tree(self) -> list[str]:
        found = [self.path]
        for directory in found:
            try:
                with os.scandir(directory) as entries:
                    found.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
            except OSError:
                pass  # removed meanwhile
        return found

    def pids(self) -> list[int]:
        """Every process of the cgroup and the cgroups below it."""
        return [
            int(pid)
            for path in self._tree()
            for pid in read(os.path.join(path, "cgroup.procs")).split()
            if pid != "0"
        ]

    def signal(self, number: int) -> None:
        """Send a signal to every process; SIGKILL is atomic through cgroup.kill where the kernel has it
        (5.14). Raises OSError.
        """
        if number == 9:
            try:
                write(self.file("cgroup.kill"), "1")
                return
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return  # it is being removed, so that nobody is in it
                if error.errno != errno.ENOENT:
                    raise  # one by one would miss who forks meanwhile
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def freeze(self, frozen: bool) -> None:
        """Ask for the state; `when("frozen", ...)` tells when it is reached. Raises OSError."""
        write(self.file("cgroup.freeze"), "1" if frozen else "0")

    def when(self, key: str, value: str, callback: Callable[[], None]) -> None:
        """Call `callback` once, as soon as `key` of cgroup.events has `value` (populated, frozen; 0 or 1), or
        somebody has removed the cgroup: nothing is in it then. Other errors raise OSError.
        """
        try:
            fd = os.open(self.file("cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            callback()
            return
        self._watched.append(fd)

        def look(events: int) -> None:
            if _event(fd, key) in (value, ""):
                self._unwatch(fd)
                callback()

        self._loop.watch(fd, PRIORITY, look)
        look(0)

    def watch_oom(self, callback: Callable[[], None]) -> None:
        """Call `callback` at every change of memory.events for as long as the cgroup lives; nothing without
        the controller.
        """
        try:
            fd = os.open(self.file("memory.events"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self._watched.append(fd)

        def look(events: int) -> None:
            os.pread(fd, 4096, 0)  # reading re-arms the notification
            callback()

        os.pread(fd, 4096, 0)
        self._loop.watch(fd, PRIORITY, look)

    def _unwatch(self, fd: int) -> None:
        self._watched.remove(fd)
        self._loop.unwatch(fd)
        os.close(fd)

    def oom_kills(self) -> int:
        """How often the OOM killer has hit this cgroup."""
        return int(dict(_pairs(read(self.file("memory.events")))).get("oom_kill", "0"))

    def counters(self) -> list[tuple[str, int]]:
        """Every number there is, by file name and key; io.stat summed over devices; limits without `max`."""
        found = []
        for name in _SINGLE:
            text = read(self.file(name)).strip()
            if text.isdigit():
                found.append((name, int(text)))
        for name in _FLAT:
            prefix = "cpu" if name == "cpu.stat" else name
            found += [
                (f"{prefix}.{key}", int(value))
                for key, value in _pairs(read(self.file(name)))
                if value.isdigit()
            ]
        totals: dict[str, int] = {}
        for line in read(self.file("io.stat")).splitlines():
            for key, equals, value in (item.partition("=") for item in line.split()[1:]):
                if equals and value.isdigit():
                    totals[key] = totals.get(key, 0) + int(value)
        return found + [(f"io.{key}", value) for key, value in totals.items()]

    def try_remove(self) -> bool:
        """Remove it unless somebody is in it."""
        try:
            self.remove()
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove the cgroup and those below it; raises OSError (EBUSY) while processes are left."""
        for fd in list(self._watched):
            self._unwatch(fd)
        if self._filter >= 0:
            os.close(self._filter)
            self._filter = -1
        for directory in reversed(self._tree()):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass


def _event(fd: int, key: str) -> str:
    """What an open cgroup.events says of `key`; empty when its cgroup was removed."""
    try:
        return dict(_pairs(os.pread(fd, 4096, 0).decode())).get(key, "")
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""
        raise


def _pairs(text: str) -> list[tuple[str, str]]:
    """Lines of `key value`."""
    found = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found.append((key, value))
    return found
