"""A start by containerd takes a VM that waits, and is in all else a start by containerd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone import state
from bufferzone.model import ImageRef
from vm.containerd import RUNTIME, SCRIPT, Containerd, needs_containerd, program
from vm.leftovers import descendants, is_alive, name_of
from vm.podman import read_until
from vm.test_pool import Pool
from vm.verbs import await_end, await_true, kill

pytestmark = [pytest.mark.vm, needs_containerd]

NAMESPACE = "bz-pool-test"


class Pooled:
    """A containerd whose settings want a pool, and the pool of its namespace."""

    def __init__(self, directory: Path, image: ImageRef, template: Path) -> None:
        self.pool = Pool(directory / "pool", image, template)
        self.root = Path("/run/bufferzone-containerd") / NAMESPACE
        self.pool.runtime.root, self.pool.directory = self.root, self.root / state.POOL
        self.daemon = Containerd(directory, self.pool.before)
        self.image = ""

    def begin(self) -> None:
        self.daemon.start()
        archive = str(self.daemon.directory / "busybox.tar")
        subprocess.run(["/usr/bin/python3", SCRIPT, archive], check=True, capture_output=True, timeout=60)
        self.ctr("images", "import", archive)
        self.image = self.ctr("images", "ls", "-q").split()[0]

    def ctr(self, *words: str, **more: Any) -> str:
        return str(self.daemon.ctr(*words, namespace=NAMESPACE, **more).stdout.decode())

    def run(self, id: str) -> str:
        """Run a container that stays; how its VM began."""
        self.ctr("run", "-d", "--runtime", RUNTIME, self.image, id, "sleep", "1000")
        return str(self.pool.runtime.state(id)["annotations"]["bufferzone.start"])

    def take(self, id: str) -> int:
        """Run one in a VM that waited; its shim. A start on a busy machine may be impatient; not three."""
        for _ in range(3):
            (waiting,) = self.pool.await_waiting()
            if self.run(id) == "pool":
                assert self.pid(id) == waiting
                return waiting
            self.remove(id)
        pytest.fail(f"no start is served: {self.pool.log()}")

    def pid(self, id: str) -> int:
        """Of its shim."""
        return state.owner_pid(str(self.root / id))

    def remove(self, id: str) -> None:
        pid = self.pid(id)
        self.ctr("task", "kill", "-s", "KILL", id)
        self.ctr("task", "rm", "-f", id)
        self.ctr("containers", "rm", id)
        await_end(pid)
        assert not (self.root / id).exists()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef, template: Path
) -> Iterator[Pooled]:
    pooled = Pooled(tmp_path_factory.mktemp("ctrdpool"), guest_image, template)
    pooled.begin()
    yield pooled
    pooled.daemon.stop()
    shutil.rmtree(pooled.root)


@pytest.fixture
def pooled(shared: Pooled) -> Iterator[Pooled]:
    yield shared
    for id in shared.ctr("containers", "ls", "-q").split():
        shared.ctr("task", "rm", "-f", id, check=False)
        shared.ctr("containers", "rm", id, check=False)
    assert shared.pool.bz("pool", "stop").status == 0
    assert set(os.listdir(shared.root)) <= {state.POOL, "kvm-probe.json"}
    assert set(os.listdir(shared.pool.directory)) <= {"keeper.log", "lock"}


def sockets() -> set[str]:
    return set(os.listdir("/run/containerd/s"))


def test_the_first_start_begins_the_pool_and_the_next_one_takes_from_it(pooled: Pooled) -> None:
    assert pooled.run("first") == "warm"
    before = sockets()
    waiting = pooled.take("second")
    (own,) = sockets() - before
    echoed = pooled.ctr("task", "exec", "--exec-id", "e1", "second", "cat", stdin=b"through the wall\n")
    assert echoed == "through the wall\n"
    assert "pids.current" in pooled.ctr("task", "metrics", "second")
    (refilled,) = pooled.pool.await_waiting()
    assert refilled != waiting
    pooled.remove("first")
    pooled.remove("second")
    assert own not in sockets()


def test_its_end_and_output_and_status_reach_the_client(pooled: Pooled) -> None:
    pooled.run("first")
    pooled.pool.await_waiting()
    words = [program("ctr"), "-a", pooled.daemon.socket, "-n", NAMESPACE, "events"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as events:
        script = "echo out; echo err >&2; exit 7"
        done = pooled.daemon.ctr(
            "run", "--rm", "--runtime", RUNTIME, pooled.image, "one", "sh", "-c", script,
            namespace=NAMESPACE, check=False,
        )  # fmt: skip
        assert events.stdout is not None
        seen = read_until(events.stdout, b"/tasks/delete").decode()
        events.terminate()
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    topics = [word for word in seen.split() if word.startswith("/tasks/")]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_a_vm_that_is_lost_is_told_in_containerds_log(pooled: Pooled) -> None:
    pooled.run("first")
    shim = pooled.take("lost")
    kill(next(pid for pid in descendants(shim) if name_of(pid).startswith("qemu")))
    await_true(lambda: "virtual machine" in pooled.daemon.log.read_text(), "the shim's word")


def test_a_shim_from_the_pool_that_is_killed_is_cleaned_up(pooled: Pooled) -> None:
    pooled.run("first")
    shim = pooled.take("killed")
    family = [pid for pid in descendants(shim) if is_alive(pid)]
    kill(shim)
    for pid in family:
        await_end(pid)
    pooled.ctr("task", "rm", "-f", "killed", check=False)
    pooled.ctr("containers", "rm", "killed", check=False)
    await_true(lambda: not (pooled.root / "killed").exists(), "containerd's clean-up")


@pytest.mark.parametrize("how", ["keeper killed", "one that hangs"])
def test_without_an_answer_from_the_pool_a_start_works(how: str, pooled: Pooled) -> None:
    pooled.run("first")
    (waiting,) = pooled.pool.await_waiting()
    if how == "keeper killed":
        kill(keeper_of(waiting))
        await_end(waiting)
        assert pooled.run("next") == "warm"
        return
    os.kill(waiting, 19)
    try:
        assert pooled.run("next") == "warm"
    finally:
        os.kill(waiting, 18)
    await_end(waiting)
    pooled.take("last")


def keeper_of(waiting: int) -> int:
    """Who started it."""
    return int(Path(f"/proc/{waiting}/stat").read_text().rpartition(")")[2].split()[1])
