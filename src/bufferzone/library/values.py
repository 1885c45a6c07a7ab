"""What the library answers with: frozen values."""

from __future__ import annotations

from bufferzone.record import Record

#: how a program can have ended
OK, NONZERO, SIGNAL = "ok", "nonzero", "signal"
TIMEOUT, CPU_LIMIT, MEMORY_LIMIT, OUTPUT_LIMIT = "timeout", "cpu-limit", "memory-limit", "output-limit"


class Timings(Record):
    """Seconds on the host's clock: until the program ran, and the whole call."""

    start_s: float
    total_s: float


class Result(Record):
    """How a program ended: a value, also where it failed.

    `exit_code` is 0-255, 128+N where signal N killed it; `signal` is N or 0. `verdict` is one of ok, nonzero,
    signal, timeout, cpu-limit, memory-limit and output-limit; with the last four the program was killed with
    all it had started. `wall_s` is the time it ran; `cpu_s` and `peak_memory_mib` (None: the guest cannot
    tell) are what it and all it started have used. `stdout_bytes`, `stderr_bytes`: what it wrote, up to the
    limit.
    """

    args: tuple[str, ...]
    exit_code: int
    signal: int
    verdict: str
    stdout_bytes: bytes
    stderr_bytes: bytes
    wall_s: float
    cpu_s: float
    peak_memory_mib: float | None
    timings: Timings

    @property
    def stdout(self) -> str:
        """What it wrote there, as UTF-8; other bytes become U+FFFD."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """The same for stderr."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether it ended with 0, within its limits."""
        return self.verdict == OK


class Stats(Record):
    """What a sandbox uses now, by the guest's counters: seconds of CPU time, MiB, number of processes; None
    where the guest cannot tell.
    """

    cpu_s: float | None
    memory_mib: float | None
    peak_memory_mib: float | None
    processes: int | None


class Info(Record):
    """A sandbox, or a container in one, as others see it. `status` is the OCI's: creating, created, running,
    paused, stopped.
    `accelerator` is kvm or tcg, empty while nobody knows; `created` is RFC 3339. `sandbox` is the name of the
    one in whose VM it is, where it has none of its own; it may have gone before.
    """

    name: str
    status: str
    created: str
    accelerator: str
    annotations: dict[str, str]
    sandbox: str = ""


class FileInfo(Record):
    """A file in a sandbox. `kind`: file, directory, link or other; `size` in bytes, `mode` the permission
    bits, `mtime` seconds since the epoch; `target` is where a link leads.
    """

    name: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str = ""


class Change(Record):
    """Something in a directory that is watched: `kind` is made, written, removed, or missed: more happened
    than could be told.
    """

    kind: str
    name: str


class Port(Record):
    """A port of the host that leads into the sandbox."""

    address: str
    host: int
    guest: int
    protocol: str
