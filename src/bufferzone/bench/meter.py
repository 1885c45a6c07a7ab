"""`bz audit --measure`: the host's system calls that are made on behalf of a container, counted by strace.

Traced is everything of a container that is a process of the host: with runc the program itself and all it
starts; with us the shim, what stands for the container, QEMU, virtiofsd. Not traced are threads of the host's
kernel (kvm's, vhost's) and the start: counting begins some seconds after the workload has said that it runs.
A call that was under way when strace came is not counted: it is shown once more because it was interrupted.
Each call of a traced process is stopped twice, so calls a second are fewer than they would be, of a runtime
that makes many most of all; calls for a round of the workload are comparable. Where it is asked for, the
functions of the kernel that run on its behalf are noted afterwards, for the same workload, with the kernel's
threads. docs/attack-surface.md has method and figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time

from bufferzone.audit import held, sandboxes
from bufferzone.bench import kernel_functions, programs, runtimes
from bufferzone.errors import HostError
from bufferzone.record import Record, asdict, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from bufferzone.bench.runtimes import Runtime

#: name -> a script that says a byte for each round, without end
WORKLOADS = {
    "idle": "echo; while :; do sleep 1; echo; done",
    "files": (
        "while :; do /bin/busybox dd if=/dev/zero of=/file bs=64k count=16 2>/dev/null; "
        "/bin/busybox cat /file >/dev/null; /bin/busybox rm /file; echo; done"
    ),
    "network": (
        "/bin/busybox ip link set lo up; /bin/busybox httpd -p 127.0.0.1:7000 -h /bin; "
        "while :; do /bin/busybox wget -q -O /dev/null http://127.0.0.1:7000/busybox; echo; done"
    ),
    "forks": ("while :; do for n in 1 2 3 4 5 6 7 8 9 10; do /bin/busybox true; done; echo; done"),
}
_MOUNTS = "mount umount2 pivot_root open_tree move_mount fsopen fsconfig fsmount mount_setattr"
_OTHERS = "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp"
_RIGHTS = (
    "setuid setgid setresuid setresgid capset bpf keyctl add_key init_module finit_module perf_event_open"
)
#: class of dangerous calls -> names, and what their arguments have to contain (empty: anything)
CLASSES = {
    "new namespace": ("clone clone3 unshare setns", r"CLONE_NEW"),
    "mounts": (_MOUNTS, ""),
    "other processes": (_OTHERS, ""),
    "rights": (_RIGHTS, ""),
    "execve": ("execve execveat", ""),
    "open to write": ("open openat openat2", r"O_WRONLY|O_RDWR|O_CREAT"),
    "network socket": ("socket", r"AF_INET|AF_NETLINK|AF_PACKET"),
    "executable memory": ("mmap mprotect", r"PROT_EXEC"),
    "ioctl": ("ioctl", ""),
}
_CALL = re.compile(r"^(\d+)\s+(\d+\.\d+)\s+(\w+)\((.*)")
_ATTACH_S, _FIRST_S = 30.0, 180.0
#: what a start leaves to be done: a guest gives free memory back, code is translated, records are written
_START_S = 10.0
#: who is a process of a container that is no helper of ours, and one that began while it was counted
_CONTAINER, _LATER = "container", "begun meanwhile"


class Count(Record):
    """One workload under one runtime: `calls` by name, the same for each role of a process (`roles`),
    dangerous `classes` by name, `seconds` measured, `rounds` of the workload in that time, `processes` that
    were traced and how many of them were `privileged` (uid 0 of the host, or a capability over it). Of the
    kernel's functions that ran the names (None: not asked for), and how many calls were not written down.
    """

    calls: dict[str, int]
    roles: dict[str, dict[str, int]]
    classes: dict[str, int]
    seconds: float
    rounds: int
    processes: int
    privileged: int
    functions: list[str] | None = None
    functions_lost: int = 0

    def form(self) -> dict[str, Any]:
        """As JSON values, with what follows from them."""
        total = sum(self.calls.values())
        return {
            **asdict(self),
            "unique": len(self.calls),
            "unique_functions": None if self.functions is None else len(self.functions),
            "per_second": round(total / self.seconds, 1),
            "per_round": round(total / self.rounds, 1) if self.rounds else None,
        }


def measure(
    names: Sequence[str],
    own_program: str,
    directory: str,
    seconds: float,
    progress: Callable[[str], None],
    *,
    functions: bool = False,
) -> dict[str, Any]:
    """runtime -> workload -> `Count.form`, or the reason why there is none; `functions`: the kernel's too.
    Raises `HostError`.
    """
    if functions:
        with kernel_functions.Tracer([os.getpid()]):  # before the minutes of measuring, not after
            pass
    strace = shutil.which("strace", path=programs.ENVIRONMENT["PATH"])
    if strace is None:
        raise HostError("cannot count system calls: no strace", hint="apt-get install strace")
    rootfs = os.path.join(directory, "rootfs")
    from bufferzone.bench import bundles

    bundles.make_rootfs(rootfs)
    found: dict[str, Any] = {}
    for name in names:
        runtime = runtimes.find(name, own_program)
        if runtime.reason:
            found[name] = {"reason": runtime.reason}
            continue
        runtime.prepare(os.path.join(directory, name), rootfs)
        found[name] = {}
        for workload, script in WORKLOADS.items():
            progress(f"{name}: {workload}")
            try:
                found[name][workload] = _one(runtime, script, strace, seconds, functions).form()
            except HostError as error:
                found[name][workload] = {"reason": error.line()}
    return found


def _one(runtime: Runtime, script: str, strace: str, seconds: float, functions: bool) -> Count:
    path = os.path.join(runtime.bundle, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["process"]["args"] = ["/bin/sh", "-c", script]
    sets = ("bounding", "effective", "permitted")
    config["process"]["capabilities"] = {name: ["CAP_KILL", "CAP_NET_ADMIN"] for name in sets}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    program = runtime.start("meter")
    try:
        _until(program, lambda: program.first_ms is not None and program.ended, _FIRST_S)
        _during(program, _START_S)
        count = _counted(runtime, program, strace, seconds)
        return _with_functions(count, runtime, program, seconds) if functions else count
    finally:
        program.close()
        runtime.remove(["meter"])


def _counted(runtime: Runtime, program: programs.Program, strace: str, seconds: float) -> Count:
    processes = _processes(runtime)
    privileged = sum(_is_privileged(pid) for pid in processes)
    owners = {tid: role for pid, role in processes.items() for tid in _threads(pid)}
    trace = os.path.join(runtime.directory, "trace")
    words = [strace, "-f", "-qq", "-ttt", "-s", "0", "-o", trace]
    tracer = programs.Program(
        [*words, *(word for pid in processes for word in ("-p", str(pid)))],
        os.path.join(runtime.directory, "strace.err"),
    )
    try:
        _until(program, lambda: _has_ended(tracer) or all(map(_is_traced, processes)), _ATTACH_S)
        begun, before = time.time(), len(program.output)
        _during(program, seconds)
        late = time.monotonic() + 5 * seconds  # a busy machine may not end a round in time
        _until(program, lambda: len(program.output) > before or time.monotonic() > late, 6 * seconds)
        end, rounds = time.time(), len(program.output) - before
        os.kill(tracer.pid, signal.SIGINT)
        _until(program, lambda: _has_ended(tracer), _ATTACH_S)
    finally:
        tracer.close()
    if not os.path.getsize(trace) and tracer.status not in (0, -2, 130):
        raise HostError(f"strace counted nothing: {tracer.errors()}")
    roles, classes = read_trace(trace, owners, begun, end)
    return Count(
        calls=_sorted(_together(roles)),
        roles={role: _sorted(calls) for role, calls in roles.items()},
        classes=classes,
        seconds=round(end - begun, 2),
        rounds=rounds,
        processes=len(processes),
        privileged=privileged,
    )


def _with_functions(count: Count, runtime: Runtime, program: programs.Program, seconds: float) -> Count:
    """The same for the functions of the kernel, in a time of its own."""
    processes = _processes(runtime)
    threads = [tid for pid in processes for tid in _threads(pid)]
    with kernel_functions.Tracer([*threads, *kernel_functions.kernel_threads(processes)]) as tracer:
        _during(program, seconds)
    return replace(count, functions=sorted(tracer.names), functions_lost=tracer.lost)


def read_trace(
    path: str, owners: dict[int, str], begin: float, end: float
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Calls by role and name, and dangerous classes, of strace's output with `-f -ttt`: those that began at
    `begin` or later and before `end`, wall clock. `owners` has the role of each thread that was there: what
    such a one is shown to do first, it was doing already, and it is not counted, whenever strace came to it.
    A call that was interrupted in the output counts once.
    """
    met: set[int] = set()
    roles: dict[str, dict[str, int]] = {}
    classes: dict[str, int] = {}
    by_name: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for label, (names, wanted) in CLASSES.items():
        for name in names.split():
            by_name.setdefault(name, []).append((label, re.compile(wanted)))
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            found = _CALL.match(line)
            if found is None:
                continue
            thread = int(found[1])
            is_first = thread in owners and thread not in met
            met.add(thread)
            if is_first or not begin <= float(found[2]) < end:
                continue
            name, arguments = found[3], found[4]
            calls = roles.setdefault(owners.get(thread, _LATER), {})
            calls[name] = calls.get(name, 0) + 1
            for label, wanted_there in by_name.get(name, ()):
                if wanted_there.search(arguments):
                    classes[label] = classes.get(label, 0) + 1
    return roles, classes


def _together(roles: dict[str, dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for calls in roles.values():
        for name, number in calls.items():
            total[name] = total.get(name, 0) + number
    return total


def _sorted(calls: dict[str, int]) -> dict[str, int]:
    return dict(sorted(calls.items(), key=lambda item: -item[1]))


def _during(program: programs.Program, seconds: float) -> None:
    """Take what the container says for so long."""
    end = time.monotonic() + seconds
    _until(program, lambda: time.monotonic() > end, seconds + _ATTACH_S)


def _until(program: programs.Program, done: Callable[[], bool], timeout_s: float) -> None:
    """Take what the container says until `done`; raises `HostError` when it failed or its time is up."""

    def failed() -> bool:
        return program.ended and bool(program.status)

    if not programs.listen(program, lambda: done() or failed(), timeout_s):
        raise HostError(f"not within {timeout_s:g} s: {' '.join(program.argv[:1])}")
    if failed():
        raise HostError(f"it did not start: {program.errors()}")


def _has_ended(tracer: programs.Program) -> bool:
    tracer.hear(0)
    return tracer.ended


def _processes(runtime: Runtime) -> dict[int, str]:
    """pid -> role of the processes of the host that are there for the container; nothing else of ours runs
    meanwhile.
    """
    if runtime.is_ours:
        return {each.held.pid: each.role for box in sandboxes.find(runtime.root) for each in box.processes}
    return dict.fromkeys(programs.descendants(), _CONTAINER)  # we are a subreaper: all that it left is ours


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []  # it ended


def _is_traced(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((line for line in file if line.startswith("TracerPid:")), "0").split()[-1] != "0"
    except OSError:
        return True  # it ended


def _is_privileged(pid: int) -> bool:
    try:
        seen = held.read(pid)
    except OSError:
        return False
    own = held.namespaces("/proc/self").get("user")
    ours = seen.namespaces.get("user") == own
    return ours and (0 in seen.first.uids or bool(seen.first.capabilities["effective"]))


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A table, with its head."""
    head = ["RUNTIME", "WORKLOAD", "UNIQUE", "CALLS/S", "ROUNDS", "CALLS/ROUND", "FUNCTIONS"]
    lines = [[*head, "PRIVILEGED", "DANGEROUS"]]
    for name, workloads in found.items():
        if "reason" in workloads:
            lines.append([name, *[""] * 7, workloads["reason"]])
            continue
        for workload, count in workloads.items():
            if "reason" in count:
                lines.append([name, workload, *[""] * 6, count["reason"]])
                continue
            numbers = [count["unique"], count["per_second"], count["rounds"], count["per_round"] or ""]
            shown = ", ".join(f"{label} {number}" for label, number in sorted(count["classes"].items()))
            privileged = f"{count['privileged']} of {count['processes']}"
            reached = "-" if count["unique_functions"] is None else str(count["unique_functions"])
            lines.append([name, workload, *map(str, numbers), reached, privileged, shown or "none"])
    return lines


def draw(found: dict[str, Any], path: str, pyplot: Any) -> None:
    """A PNG: unique calls and calls for a round, a bar for each runtime and workload. Raises `HostError`."""
    figure, (unique, rounds) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axes, key, title in ((unique, "unique", "different calls"), (rounds, "per_round", "calls a round")):
        labels, values = [], []
        for name, workloads in found.items():
            for workload, count in workloads.items():
                if isinstance(count, dict) and count.get(key):
                    labels.append(f"{name}: {workload}")
                    values.append(count[key])
        axes.barh(labels, values)
        axes.set_title(f"system calls of the host: {title}")
    rounds.set_xscale("log")
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    finally:
        pyplot.close(figure)
