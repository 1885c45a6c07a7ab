"""Many containers and pods by containerd: nothing accumulates, nothing stays, no exit is lost.

The short forms run always. Longer ones with
BUFFERZONE_SOAK_RUNS=500 BUFFERZONE_SOAK_AT_ONCE=4 BUFFERZONE_SOAK_PODS=100 in the environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from vm.containerd import RUNTIME, Containerd, needs_containerd, program
from vm.leftovers import Watch, descriptors
from vm.podman import read_until
from vm.test_containerd import containerd, image
from vm.verbs import await_true

pytestmark = [pytest.mark.vm, needs_containerd]

__all__ = ["containerd", "image"]  # fixtures
RUNS = int(os.environ.get("BUFFERZONE_SOAK_RUNS", "4"))
PODS = int(os.environ.get("BUFFERZONE_SOAK_PODS", "1"))
AT_ONCE = int(os.environ.get("BUFFERZONE_SOAK_AT_ONCE", "2"))
IN_A_POD = 3
SOCKETS = Path("/run/containerd/s")
STATE = Path("/run/bufferzone-containerd")


class Before:
    """What a daemon and the machine have before any container, and that there is no more afterwards."""

    def __init__(self, daemon: Containerd, namespace: str, mark: str) -> None:
        self._daemon = daemon
        self._watch = Watch(STATE / namespace, mark=mark)
        self._had = self._has()

    def _has(self) -> list[str]:
        """One line for each thing; of the daemon's descriptors those of connections."""
        pid, directory = self._daemon.process.pid, str(self._daemon.directory)
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        found = self._watch.left()
        found += [f"mount {line}" for line in mounts if directory in line or "bufferzone" in line]
        found += [f"socket {path}" for path in self._sockets()]
        return found + [name for name in descriptors(pid) if name in ("socket", "pipe", "anon_inode")]

    def _sockets(self) -> list[str]:
        """Those of this daemon: their names are hashes, so it is asked of whom they are."""
        lines = Path("/proc/net/unix").read_text().splitlines()
        return sorted(path for path in _ours(self._daemon) if any(path in line for line in lines))

    def assert_nothing_left(self) -> None:
        with contextlib.suppress(AssertionError):
            await_true(lambda: not self._more(), "their end")
        assert self._more() == []

    def _more(self) -> list[str]:
        had, more = list(self._had), []
        for line in self._has():
            if line in had:
                had.remove(line)
            else:
                more.append(line)
        return more


def _ours(daemon: Containerd) -> list[str]:
    """Addresses of shims in the bundles below a daemon's state directory."""
    found = Path(daemon.directory / "state").glob("*/*/*/address")
    return [path.read_text().removeprefix("unix://") for path in found]


def lines_until(events: IO[bytes], topic: str, count: int) -> list[tuple[str, dict[str, object]]]:
    """(topic, event) of `ctr events`, until that topic has come so often."""
    text, found = "", []
    while sum(name == topic for name, _ in found) < count:
        text += read_until(events, b"\n").decode()
        *whole, text = text.split("\n")
        for line in whole:
            head, brace, tail = line.partition("{")
            found.append((head.split()[-1], json.loads(brace + tail)))
    return found


def test_many_runs_at_once_lose_no_exit_and_leave_nothing(containerd: Containerd, image: str) -> None:
    def run(number: int) -> int:
        words = ("run", "--rm", "--runtime", RUNTIME, image, f"soak{number}")
        script = f"exit {number % 100}"
        return int(containerd.ctr(*words, "sh", "-c", script, check=False).returncode)

    before = Before(containerd, "bz-test", "soak")
    command = [program("ctr"), "-a", containerd.socket, "-n", "bz-test", "events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as events:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            told = list(pool.map(run, range(RUNS)))
        seen = lines_until(events.stdout, "/tasks/delete", RUNS)
        events.terminate()
    assert told == [number % 100 for number in range(RUNS)]
    for number in range(RUNS):
        own = [(name, event) for name, event in seen if event.get("container_id") == f"soak{number}"]
        topics = [name for name, _ in own if name.startswith("/tasks/")]
        assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"], number
        statuses = [event.get("exit_status", 0) for name, event in own if name == "/tasks/exit"]
        assert statuses == [number % 100]
    before.assert_nothing_left()


@pytest.fixture(params=["pause", "shim"])
def cri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    if not importlib.util.find_spec("grpc") or not os.path.exists("/usr/lib/cni/bridge"):
        pytest.skip("needs grpcio and CNI's plug-ins")
    from vm.cri import serving

    with serving(tmp_path, request.param) as client:
        yield client


def test_many_pods_of_three_containers_leave_nothing(cri: object) -> None:
    from vm import cri_messages as m
    from vm.cri import NAMESPACE, Cri

    assert isinstance(cri, Cri)
    with cri.pod() as first:  # the bridge and what the daemon keeps are made by it
        first.start("one", "true")
    before = Before(cri.daemon, NAMESPACE, "")  # whose cgroups are gone, each pod has seen
    for number in range(PODS):
        with cri.pod() as pod:
            containers = [pod.start(f"c{n}", "sh", "-c", f"exit {number + n}") for n in range(IN_A_POD)]
            for n, container in enumerate(containers):
                await_true(lambda: container.status().state == m.EXITED, "its end")  # noqa: B023
                assert container.status().exit_code == number + n
    assert cri.call("ListContainers", m.ListContainers()).containers == []
    before.assert_nothing_left()
