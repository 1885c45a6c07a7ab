"""The pool in the life of sandboxes: taken from, refilled, never why a start fails, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone import state
from bufferzone.model import ImageRef
from vm.leftovers import Watch, descendants, is_alive, name_of
from vm.podman import Podman, Terminal
from vm.verbs import BOOT_S, await_end, await_true, bundle, config, kill
from vm.warm import Warm

pytestmark = pytest.mark.vm

MARK = "bzpool"
FILL_S = 240.0  # who fills a pool is nice to all others


class Pool(Warm):
    """A runtime whose settings want a pool, with a copy of the store `template`."""

    def __init__(
        self, directory: Path, image: ImageRef, template: Path, size: int = 1, **settings: object
    ) -> None:
        super().__init__(directory, image, **{"pool.size": size, **settings})
        self.directory = self.runtime.root / state.POOL
        self.take_template(template)

    def start(self, count: int = 1) -> None:
        """A keeper with `count` VMs that wait."""
        begun = self.bz("pool", "start")
        assert begun.status == 0, begun.err
        self.await_waiting(count)

    def rows(self) -> list[dict[str, Any]]:
        """What the keeper says of its VMs; empty when there is none."""
        lines = self.bz("pool", "ls").out.splitlines()[1:]
        return [dict(zip(("pid", "state"), line.split()[:2], strict=True)) for line in lines]

    def await_waiting(self, count: int = 1) -> list[int]:
        """Wait until so many VMs wait; the pids of their processes."""

        def found() -> list[int]:
            rows = self.rows()
            waiting = [int(row["pid"]) for row in rows if row["state"] == "waiting"]
            return waiting if len(waiting) == count == len(rows) else []

        return list(await_true(found, f"{count} waiting VMs, {self.log()}", FILL_S))

    def keeper(self) -> int:
        """Its pid, or 0."""
        ours = [pid for pid in descendants() if name_of(pid) == "bufferzone-pool" and is_alive(pid)]
        return ours[0] if ours else 0

    def log(self) -> str:
        try:
            return (self.directory / "keeper.log").read_text()
        except FileNotFoundError:
            return ""

    def run(self, id: str, made: Path) -> str:
        """Run a container until it speaks; how its VM began."""
        self.runtime.run(id, made).expect("up")
        return self.begun(id)

    def take(self, id: str, made: Path) -> int:
        """Run a container in a VM that waited; that one's pid. On a busy machine a start may be too
        impatient, but not three.
        """
        for _ in range(3):
            (waiting,) = self.await_waiting()
            if self.run(id, made) == "pool":
                return waiting
            self.runtime.ok("delete", "--force", id)
        pytest.fail(f"no start is served: {self.log()}")


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path / "pool" / "root", mark=MARK)


@pytest.fixture
def pool(tmp_path: Path, guest_image: ImageRef, template: Path, watch: Watch) -> Iterator[Pool]:
    pool = Pool(tmp_path / "pool", guest_image, template)
    yield pool
    pool.runtime.close()
    assert pool.bz("pool", "stop").status == 0
    assert_nothing_left(pool, watch)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": f"/{MARK}-test"}
    return bundle(tmp_path / "bundle", "echo up; exec sleep 1000", linux=linux)


def assert_nothing_left(pool: Pool, watch: Watch) -> None:
    """Of the pool its log stays, and the file that keepers lock."""
    left = os.listdir(pool.directory) if pool.directory.exists() else []
    assert set(left) <= {"keeper.log", "lock"}
    shutil.rmtree(pool.directory, ignore_errors=True)
    watch.assert_nothing_left()


def helpers_of(shim: int) -> list[int]:
    return [pid for pid in descendants(shim) if is_alive(pid)]


def cgroups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def test_the_first_start_begins_the_pool_and_the_next_one_takes_from_it(pool: Pool, made: Path) -> None:
    assert pool.run("first", made) == "warm"
    waiting = pool.take("second", made)
    assert pool.runtime.shim_pid("second") == waiting
    assert "  pool  " in pool.bz("ps").out
    helpers = pool.runtime.helper_pids("second")
    assert set(helpers) == {"shim", "qemu", "virtiofsd"}
    for pid in helpers.values():
        assert MARK in cgroups_of(pid)
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert MARK not in cgroups_of(pool.keeper())
    assert pool.take("third", made) != waiting
    for id in ("first", "second", "third"):
        pool.runtime.ok("delete", "--force", id)
        assert not (pool.runtime.root / id).exists()


def test_an_empty_pool_means_a_start_of_the_other_kind(pool: Pool, made: Path) -> None:
    pool.start()
    pool.take("one", made)
    assert pool.run("two", made) == "warm"


def test_two_starts_at_once_on_a_pool_of_one_both_work(pool: Pool, made: Path) -> None:
    pool.start()
    begun = [pool.runtime.begin_create(id, made) for id in ("one", "two")]
    for verb, container in begun:
        assert verb.wait(BOOT_S) == 0, container.errors()
    assert sorted(pool.begun(id) for id in ("one", "two")) == ["pool", "warm"]
    for _, container in begun:
        pool.runtime.ok("start", container.id)
        container.expect("up")


def test_another_shape_does_not_fit_and_gets_its_own(pool: Pool, tmp_path: Path, made: Path) -> None:
    pool.start()
    other = bundle(tmp_path / "other", "echo up; exec sleep 9", annotations={"bufferzone.templates": "false"})
    assert pool.run("cold", other) == "cold"
    bigger = bundle(tmp_path / "bigger", "echo up; exec sleep 9", annotations={"bufferzone.memory": "640"})
    assert pool.run("bigger", bigger) in ("cold", "warm")
    pool.take("fitting", made)


def test_a_keeper_that_is_killed_takes_those_that_wait_along_and_no_container(pool: Pool, made: Path) -> None:
    pool.start()
    pool.take("runs", made)
    (waiting,) = pool.await_waiting()
    there = [waiting, *helpers_of(waiting)]
    assert len(there) == 3, [name_of(pid) for pid in there]
    kill(pool.keeper())
    for pid in there:
        await_end(pid)
    assert pool.runtime.status("runs") == "running"
    done = pool.runtime.verb("exec", "runs", "/bin/echo", "still here")
    assert done.out == "still here\n", done
    assert pool.run("next", made) == "warm"  # and it begins a new pool
    pool.take("last", made)


def test_a_waiting_vm_that_is_killed_is_replaced(pool: Pool, made: Path) -> None:
    pool.start()
    (waiting,) = pool.await_waiting()
    (vmm,) = [pid for pid in helpers_of(waiting) if name_of(pid).startswith("qemu")]
    kill(vmm)
    await_end(waiting)
    assert pool.await_waiting() != [waiting]
    assert "a waiting VM has ended" in pool.log()
    pool.take("one", made)


def test_a_vm_that_hangs_when_it_is_taken_is_left_for_another(pool: Pool, made: Path) -> None:
    pool.start()
    (waiting,) = pool.await_waiting()
    os.kill(waiting, signal.SIGSTOP)
    try:
        assert pool.run("one", made) == "warm"
    finally:
        os.kill(waiting, signal.SIGCONT)
    await_end(waiting)
    assert json.loads((pool.runtime.root / "one" / "leftovers.json").read_text())["processes"]


def test_a_keeper_that_is_killed_in_the_middle_of_a_claim_does_not_stop_the_start(
    pool: Pool, made: Path
) -> None:
    pool.start()
    (waiting,) = pool.await_waiting()
    helpers = helpers_of(waiting)
    os.kill(waiting, signal.SIGSTOP)
    verb, container = pool.runtime.begin_create("one", made)
    # it is handed over, and will not answer
    await_true(lambda: all(int(row["pid"]) != waiting for row in pool.rows()), "the claim")
    kill(pool.keeper())
    assert verb.wait(BOOT_S) == 0, container.errors()
    assert pool.begun("one") == "warm"
    for pid in (waiting, *helpers):
        await_end(pid)


@pytest.fixture
def pooled_podman(podman: Podman, pool: Pool, tmp_path: Path) -> Iterator[Podman]:
    """Podman whose runtime has the settings and the state root of `pool`."""
    before = podman.program
    podman.program = tmp_path / "bin" / "bufferzone"
    podman.program.parent.mkdir()
    words = pool.runtime.command()
    podman.program.write_text(f"#!/usr/bin/python3 -IS\nimport os, sys\nwords = {words!r}\n")
    with podman.program.open("a") as file:
        file.write("os.execv(words[0], [*words, *sys.argv[1:]])\n")
    podman.program.chmod(0o755)
    yield podman
    podman("rm", "--all", "--force", "--time", "0", timeout_s=120)
    podman.program = before


def test_podman_runs_execs_copies_and_has_volumes_and_terminals_in_vms_that_waited(
    pooled_podman: Podman, pool: Pool, tmp_path: Path
) -> None:
    podman = pooled_podman
    pool.start()
    late = tmp_path / "late"
    late.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "late", str(late)], check=True
    )  # after the VM left this namespace
    try:
        (late / "file").write_text("from the host\n")
        flags = ["-v", f"{late}:/late", "-v", "of-the-pool:/named", "--hostname", "here"]
        id = podman("run", "-d", *flags, podman.image, "sleep", "600").text
        assert pool.begun(id) == "pool"
        assert podman("exec", id, "cat", "/late/file").text == "from the host"
        podman("exec", id, "sh", "-c", "echo back >/late/back; echo kept >/named/x; hostname >/name")
        assert (late / "back").read_text() == "back\n"
        assert podman("exec", id, "cat", "/named/x", "/name").lines == ["kept", "here"]
        podman("cp", str(late / "file"), f"{id}:/copied")
        podman("cp", f"{id}:/name", str(tmp_path / "name"))
        assert (tmp_path / "name").read_text() == "here\n"
        assert podman("exec", id, "cat", "/copied").text == "from the host"
        pool.await_waiting()
        words = podman.argv("run", "--rm", "-t", podman.image, "sh", "-c", "test -t 1 && echo terminal")
        with Terminal(words, podman.environment()) as terminal:
            terminal.until(b"terminal")
            assert terminal.wait() == 0
        pool.await_waiting()
        podman("rm", "--force", "--time", "0", id)
    finally:
        subprocess.run(["umount", "--lazy", str(late)], check=True)


def test_without_use_the_pool_ends(
    tmp_path: Path, guest_image: ImageRef, template: Path, watch: Watch
) -> None:
    pool = Pool(tmp_path / "pool", guest_image, template, **{"pool.idle_s": 3})
    pool.bz("pool", "start")
    keeper = await_true(pool.keeper, "a keeper")
    await_end(keeper, 30)
    assert_nothing_left(pool, watch)


def test_no_pool_is_begun_where_the_settings_want_none(
    tmp_path: Path, guest_image: ImageRef, template: Path, made: Path
) -> None:
    pool = Pool(tmp_path / "pool", guest_image, template, size=0)
    try:
        assert pool.run("one", made) == "warm"
        assert pool.bz("pool", "start").line.startswith("bz: the pool is disabled")
        assert not pool.directory.exists()
    finally:
        pool.runtime.close()
