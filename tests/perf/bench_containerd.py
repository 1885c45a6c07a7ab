"""What containerd waits for, beside containerd-shim-runc-v2 and beside an exec, in one run. Asserts nothing.

    python3 tests/perf/bench_containerd.py [ROUNDS]

The shim is started and asked as containerd does, with no containerd between; the VMs are real ones, as the
settings have them. `start` is timed until its process has ended with the address on its standard output. The
second container of a pod and an exec run `true`, from the first request to the answer of the last (Delete).
Stats are asked many times, and the CPU time of everything that answers is counted; for fifty pods that is
multiplied and not measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from bufferzone.wire import sandbox, shim, task, ttrpc  # noqa: E402
from bufferzone.wire.proto import Any_, Message  # noqa: E402
from flow.cli import Cli  # noqa: E402
from flow.shim_client import PROGRAM  # noqa: E402
from flow.test_sandbox_api import Pod  # noqa: E402

CALLS, PODS, EVERY_S = 300, 50, 10
_TICKS = os.sysconf("SC_CLK_TCK")


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


class Starts:
    """`start` of one shim for a bundle, and the end of that."""

    def __init__(self, program: list[str], bundle: Path, *more: str) -> None:
        self._bundle = bundle
        self._number = 0
        self._words = [*program, "-namespace", "bz-bench", "-address", str(bundle), "-bundle", str(bundle)]
        self._words += ["-publish-binary", "/bin/true", *more]

    def one(self, *, stays: bool = False) -> float:
        """Milliseconds until the address is there; then it ends, unless it `stays` for the next."""
        id, null = f"bench{self._number}", subprocess.DEVNULL
        words = [*self._words, "-id", id, "start"]
        began = time.perf_counter()
        done = subprocess.run(words, stdin=null, capture_output=True, cwd=self._bundle, check=True)
        took = (time.perf_counter() - began) * 1000
        if not stays:
            self._end(id, done.stdout.decode())
            self._number += 1
        return took

    def _end(self, id: str, answer: str) -> None:
        address = json.loads(answer)["address"] if answer.startswith("{") else answer
        service = task.SERVICE
        method, request = "Shutdown", task.ShutdownRequest(id=id, now=True).encode()
        if not (self._bundle / "config.json").exists():
            service, method = sandbox.SERVICE, "ShutdownSandbox"
            request = sandbox.SandboxRequest(sandbox_id=id).encode()
        envelope = ttrpc.Request(service=service, method=method, payload=request)
        gone = contextlib.suppress(ConnectionRefusedError, ConnectionResetError)  # runc's may be by now
        with gone, socket.socket(socket.AF_UNIX) as sock:
            sock.connect(address.removeprefix("unix://"))
            sock.sendall(ttrpc.encode_frame(1, ttrpc.REQUEST, envelope.encode()))
            while sock.recv(4096):
                pass  # until it has ended


def compare_starts(base: Path, cli: Cli, rounds: int) -> None:
    bundles = {name: cli.bundle("true", name=name) for name in ("runc", "task", "member")}
    bundles["pod"] = base / "pod-start"
    bundles["pod"].mkdir()
    runc = shutil.which("containerd-shim-runc-v2")
    kinds = {
        "runc's shim": Starts([runc or "/bin/false"], bundles["runc"]),
        "a container's, with its VM": Starts(PROGRAM, bundles["task"], "-root", str(base / "t")),
        "a pod's by the Sandbox API": Starts(PROGRAM, bundles["pod"], "-root", str(base / "p")),
        "a second container's": Starts(PROGRAM, bundles["member"], "-root", str(base / "m")),
    }
    kinds["a second container's"].one(stays=True)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, starts in kinds.items():
            found[name].append(starts.one(stays=name.startswith("a second")))
    kinds["a second container's"].one()
    bare = [milliseconds(lambda: subprocess.run(["/usr/bin/python3", "-IS", "-c", "pass"])) for _ in range(9)]
    middle = statistics.median(found["runc's shim"])
    print(f"start, {rounds} rounds; bare interpreter {statistics.median(bare):.0f} ms")
    for name, values in found.items():
        ratio, best = statistics.median(values) / middle, min(values) / min(found["runc's shim"])
        print(f"  {name:30} {statistics.median(values):6.0f} ms   x runc's {ratio:5.2f}, best {best:5.2f}")


def second_container(pod: Pod, number: int) -> list[tuple[str, float]]:
    """Its calls, each with its milliseconds."""
    id = f"c{number}"
    bundle = pod.bundle_of(id, "true", pid=pod.pid)
    return timed(
        pod,
        ("Create", task.CreateTaskRequest(id=id, bundle=str(bundle))),
        ("Start", task.StartRequest(id=id)),
        ("Wait", task.WaitRequest(id=id)),
        ("Delete", task.DeleteRequest(id=id)),
    )


def an_exec(pod: Pod, number: int) -> list[tuple[str, float]]:
    """The same."""
    id = f"e{number}"
    spec = {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    said = Any_(type_url=task.PROCESS_URL, value=json.dumps(spec).encode())
    return timed(
        pod,
        ("Exec", task.ExecProcessRequest(id="main", exec_id=id, spec=said)),
        ("Start", task.StartRequest(id="main", exec_id=id)),
        ("Wait", task.WaitRequest(id="main", exec_id=id)),
        ("Delete", task.DeleteRequest(id="main", exec_id=id)),
    )


def timed(pod: Pod, *calls: tuple[str, Message]) -> list[tuple[str, float]]:
    return [
        (name, milliseconds(lambda: pod.ask(name, request, task.SERVICE_V3)))  # noqa: B023
        for name, request in calls
    ]


class Meter:
    """CPU time of what serves a pod, in ms by process, since it was made."""

    def __init__(self, pod: Pod) -> None:
        self.info = json.loads(pod.ask("Info", None, shim.SERVICE).json)
        self._pids = {name: int(self.info[f"{name}_pid"]) for name in ("shim", "vmm", "virtiofsd")}
        self._before = {name: cpu_ms(pid) for name, pid in self._pids.items()}

    def used(self, times: int) -> dict[str, float]:
        """For each of so many times."""
        return {name: (cpu_ms(pid) - self._before[name]) / times for name, pid in self._pids.items()}


def cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / _TICKS


def compare_with_exec(pod: Pod, rounds: int) -> None:
    """Each kind by itself: the CPU time of both cannot be told apart afterwards."""
    walls, cpus = [], []
    for name, work in (("second container of a pod", second_container), ("exec", an_exec)):
        work(pod, 0)
        meter = Meter(pod)
        found = [work(pod, number) for number in range(1, rounds + 1)]
        used = meter.used(rounds)
        walls.append(statistics.median(sum(ms for _, ms in run) for run in found))
        cpus.append(sum(used.values()))
        calls = [call for call, _ in found[0]]
        parts = [statistics.median(run[at][1] for run in found) for at in range(len(calls))]
        shown = ", ".join(f"{call} {ms:.0f}" for call, ms in zip(calls, parts, strict=True))
        print(f"{name}: {walls[-1]:.0f} ms ({shown}); CPU {cpus[-1]:.0f} ms ({told(used)})")
    print(f"  ratio {walls[0] / walls[1]:.2f}, of CPU time {cpus[0] / cpus[1]:.2f}")


def told(used: dict[str, float]) -> str:
    return ", ".join(f"{name} {ms:.1f}" for name, ms in used.items())


def cost_of_stats(pod: Pod) -> None:
    meter, request = Meter(pod), task.StatsRequest(id="main")
    took = milliseconds(lambda: [pod.ask("Stats", request, task.SERVICE_V3) for _ in range(CALLS)])
    used = meter.used(CALLS)
    share = sum(used.values()) / 1000 * PODS / EVERY_S
    print(
        f"Stats: {took / CALLS:.1f} ms each; CPU in ms: {told(used)}; accelerator {meter.info['accelerator']}"
    )
    print(f"  {PODS} pods of one container every {EVERY_S} s: {share:.1%} of a core")


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cli = Cli(Path(name), settings="")
        cli.root = Path("/run/bufferzone-containerd/bz-bench")
        compare_starts(Path(name), cli, rounds)
        with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as holder:
            pod = Pod(cli)
            pod.create(f"/proc/{holder.pid}/ns/net")
            pod.pid = pod.ask("StartSandbox").pid
            pod.container("main", "pause", pid=pod.pid)
            compare_with_exec(pod, rounds)
            cost_of_stats(pod)
            pod.ask("ShutdownSandbox")
            pod.await_gone()
            holder.kill()
        shutil.rmtree(cli.root, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
