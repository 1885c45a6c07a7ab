"""Which functions of the host's kernel run for given threads: what of the kernel they reach, by name.

The kernel's function tracer writes them down, in an instance of its own, so that nobody else's tracing is
disturbed. What interrupts a thread is not counted: it runs whoever is there. Some functions cannot be traced
(`notrace`, inlined ones). Sources: Documentation/trace/ftrace.rst (instances, set_ftrace_pid, function-fork,
latency format); the horizontal attack profile of the Nabla containers project, which counts the same.
"""

from __future__ import annotations

import errno
import os
import re
import select
import threading

from bufferzone.errors import HostError
from bufferzone.linux import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ROOT = "/sys/kernel/tracing"
#: `task-tid [cpu] flags time: function <-caller`; of the five flags the third tells of an interrupt
_LINE = re.compile(rb"\] (.{5}) +[0-9.]+: ([^\s<]+)(?: \[\w+\])? <-")
_LOST = re.compile(rb"\[LOST (\d+) EVENTS\]")
_NO_INTERRUPT = b"."
_BUFFER_KIB = 16384
_READ = 1 << 20


class Tracer:
    """A context in which the functions are noted that run for `threads` (ids) and for what they start.

    Raises `HostError` where this kernel does not trace functions or does not let us.
    """

    def __init__(self, threads: Iterable[int], place: str = _ROOT) -> None:
        self.names: set[str] = set()
        #: calls that the kernel had no room to write down
        self.lost = 0
        self._threads, self._place, self._mounted = list(threads), place, False
        self._instance = os.path.join(place, "instances", f"bufferzone-{os.getpid()}")
        self._stop, self._stopped = os.pipe()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Tracer:
        try:
            self._begin()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise HostError(
                    f"cannot trace functions of the kernel: {error.strerror}: {error.filename or _ROOT}",
                    hint="it takes root of the host itself, and CONFIG_FUNCTION_TRACER",
                    code="no-tracer",
                ) from error
            raise
        return self

    def _begin(self) -> None:
        if not os.path.exists(os.path.join(self._place, "instances")):
            mount.mount("tracefs", self._place, "tracefs")
            self._mounted = True
        with open(os.path.join(self._place, "available_tracers"), encoding="ascii") as file:
            if "function" not in file.read().split():
                raise OSError(errno.EOPNOTSUPP, "no tracer named function", file.name)
        os.mkdir(self._instance)
        self._write("buffer_size_kb", str(_BUFFER_KIB))
        self._write("options/function-fork", "1")
        if not self._choose():
            return  # with nobody chosen the tracer would take everybody
        self._write("tracing_on", "0")
        self._write("current_tracer", "function")  # EBUSY once somebody reads what it writes
        pipe = os.open(os.path.join(self._instance, "trace_pipe"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._reader = threading.Thread(target=self._read, args=(pipe,), name="functions")
        self._reader.start()
        self._write("tracing_on", "1")

    def _choose(self) -> bool:
        """Name the threads to the kernel; whether any is still there."""
        chosen = False
        for thread in self._threads:
            try:
                self._write("set_ftrace_pid", str(thread), os.O_APPEND)
                chosen = True
            except ProcessLookupError:
                pass  # it ended
        return chosen

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._write("tracing_on", "0")
            os.write(self._stopped, b".")
            self._reader.join()
        os.close(self._stop)
        os.close(self._stopped)
        if os.path.isdir(self._instance):
            self._write("current_tracer", "nop")
            os.rmdir(self._instance)
        if self._mounted:
            mount.unmount(self._place)

    def _write(self, name: str, text: str, flags: int = 0) -> None:
        path = os.path.join(self._instance, name)
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            error.filename = path
            raise
        finally:
            os.close(fd)

    def _read(self, pipe: int) -> None:
        """Take lines until we are stopped and nothing more is there."""
        rest, poll = b"", select.poll()
        poll.register(pipe, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        try:
            while True:
                stopped = any(fd == self._stop for fd, _ in poll.poll())
                try:
                    data = os.read(pipe, _READ)
                except BlockingIOError:
                    data = b""
                if not data and stopped:
                    break
                whole, _, rest = (rest + data).rpartition(b"\n")
                names, lost = functions(whole.splitlines())
                self.names |= names
                self.lost += lost
        finally:
            os.close(pipe)


def functions(lines: Sequence[bytes]) -> tuple[set[str], int]:
    """Names in lines of trace_pipe that ran in no interrupt, and how many calls were lost between them."""
    names, lost = set(), 0
    for line in lines:
        if found := _LINE.search(line):
            if found[1][2:3] == _NO_INTERRUPT:
                names.add(found[2])
        elif gap := _LOST.search(line):
            lost += int(gap[1])
    return {name.decode("ascii", "replace") for name in names}, lost


def kernel_threads(pids: Iterable[int]) -> list[int]:
    """Threads of the kernel that work for a VMM (`vhost-PID`, `kvm-...-PID`), where they are none of its own.

    Since Linux 6.4 vhost's are threads of the VMM.
    """
    wanted = {str(pid) for pid in pids}
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                title = file.read().strip()
        except OSError:
            continue  # it ended
        kind, _, owner = title.replace("/", "-").rpartition("-")
        if kind.startswith(("vhost", "kvm")) and owner in wanted:
            found.append(int(name))
    return found
