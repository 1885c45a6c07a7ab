"""What of the host an attack would change, looked at before and after it. Makes one process and a file."""

from __future__ import annotations

import hashlib
import os
import signal
import time

from bufferzone.bench import programs
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SYSCTLS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/printk_ratelimit_burst",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/kernel/random/boot_id",
    "/sys/kernel/uevent_helper",
)
#: more than that may be others' doing
_PROCESSES, _MEMORY_KIB, _CLOCK_S, _DISK = 500, 4 << 20, 60, 1 << 30

#: it says something at its start, and at each signal
_VICTIM = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print(flush=True))
print(flush=True)
while True:
    time.sleep(1e6)
"""
#: a machine that is four times slower answers in this time; what was stopped does not
_ANSWER_S = 30.0


class Seen(Record):
    """The host at one moment. `clock` is the wall's time without the time since boot."""

    settings: dict[str, str]
    modules: frozenset[str]
    files: dict[str, str]
    listing: frozenset[str]
    nodes: frozenset[str]
    victim: bool
    clock: float
    processes: int
    memory_kib: int
    free_bytes: int


class Canary:
    """A directory `host` with a file that has a word nobody is told, and a process that attacks look for.
    `shared` is looked through for device nodes; `files` are the runtime's own, whose bytes must stay.
    """

    def __init__(self, host: str, shared: str, files: Sequence[str]) -> None:
        self.word = os.urandom(16).hex()
        self.host, self._shared, self._files = host, shared, [path for path in files if os.path.isfile(path)]
        self.token = os.path.join(host, "token")
        with open(self.token, "x", encoding="ascii") as file:
            file.write(self.word)
        self._process = self._begin()

    def _begin(self) -> programs.Program:
        words = ["/usr/bin/python3", "-ISc", _VICTIM, self.victim]
        begun = programs.Program(words, os.path.join(self.host, "victim.err"))
        _hear(begun, 0)
        return begun

    def _answers(self) -> bool:
        """Whether the process is there and runs. One that was just killed may look alive, and is silent."""
        heard = len(self._process.output)
        if not self._process.ended:
            os.kill(self._process.pid, signal.SIGUSR1)
        return _hear(self._process, heard)

    @property
    def victim(self) -> str:
        """A word on the process's command line, which is no secret, and of no other drill on this machine."""
        return f"bufferzone-drill-victim-{os.getpid()}"

    def look(self) -> Seen:
        """The host now."""
        return Seen(
            settings={path: _text(path) for path in _SYSCTLS},
            modules=frozenset(line.split()[0] for line in _text("/proc/modules").splitlines()),
            files={path: _sum(path) for path in self._files},
            listing=frozenset(os.listdir(self.host)),
            nodes=frozenset(_nodes(self._shared)),
            victim=self._answers(),
            clock=time.time() - time.clock_gettime(time.CLOCK_BOOTTIME),
            processes=sum(name.isdigit() for name in os.listdir("/proc")),
            memory_kib=_available_kib(),
            free_bytes=_free("/var/lib"),
        )

    def put_back(self, before: Seen, after: Seen) -> None:
        """The host's settings and clock as they were, and the process that is looked for, if it is gone."""
        for path, text in before.settings.items():
            if after.settings[path] != text and os.access(path, os.W_OK):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
        if abs(after.clock - before.clock) > _CLOCK_S:
            time.clock_settime(time.CLOCK_REALTIME, before.clock + time.clock_gettime(time.CLOCK_BOOTTIME))
        for name in after.nodes - before.nodes:
            os.unlink(os.path.join(self._shared, name))
        if before.victim and not after.victim:
            self._process.close()
            self._process = self._begin()

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _hear(program: programs.Program, heard: int) -> bool:
    """Whether it says more than `heard` bytes before it ends or its time is up."""
    programs.listen(program, lambda: len(program.output) > heard or program.ended, _ANSWER_S)
    return len(program.output) > heard


def touched(before: Seen, after: Seen) -> list[str]:
    """What of the host is another than before, in words; nothing: it was not reached."""
    found = [path for path, text in after.settings.items() if before.settings[path] != text]
    found += [f"module {name}" for name in sorted(after.modules - before.modules)]
    found += [path for path, digest in after.files.items() if before.files[path] != digest]
    found += [f"file {name}" for name in sorted(after.listing ^ before.listing)]
    found += [f"device node {name}" for name in sorted(after.nodes - before.nodes)]
    if before.victim and not after.victim:
        found.append("a process of the host was killed")
    for what, over in (
        ("clock", abs(after.clock - before.clock) > _CLOCK_S),
        ("processes", after.processes - before.processes > _PROCESSES),
        ("memory", before.memory_kib - after.memory_kib > _MEMORY_KIB),
        ("disk", before.free_bytes - after.free_bytes > _DISK),
    ):
        if over:
            found.append(what)
    return found


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        return f"({error.strerror})"


def _sum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _nodes(directory: str) -> list[str]:
    entries = [entry for entry in os.scandir(directory) if not entry.is_symlink()]
    return [entry.name for entry in entries if entry.stat().st_mode & 0o170000 in (0o020000, 0o060000)]


def _available_kib() -> int:
    line = next(line for line in _text("/proc/meminfo").splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1])


def _free(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
