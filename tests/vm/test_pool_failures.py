"""The pool where things go wrong: whoever dies or vanishes, a start works and nothing is left.

All tests share one template; each ends with no pool.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bufferzone import oci, state
from bufferzone.client import pool_claim as claims
from bufferzone.config import Settings, shape_of
from bufferzone.linux import inotify
from bufferzone.linux.libc import call, encode
from bufferzone.model import ImageRef
from bufferzone.shim import daemon
from vm.leftovers import Watch, is_alive, name_of
from vm.test_failures_disk import FULL, fill, small_disk
from vm.test_pool import Pool, assert_nothing_left, helpers_of
from vm.verbs import BOOT_S, await_end, await_true, bundle, config, kill

pytestmark = pytest.mark.vm

MARK = "bzpoolfail"
_IN_APPEARS = 0x100 | 0x80  # IN_CREATE | IN_MOVED_TO
EVENT_S = 120.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, guest_image: ImageRef, template: Path) -> Pool:
    return Pool(tmp_path_factory.mktemp("pool") / "pool", guest_image, template)


@pytest.fixture
def pool(shared: Pool) -> Iterator[Pool]:
    watch = Watch(shared.runtime.root, mark=MARK)
    yield shared
    shared.runtime.close()
    assert shared.bz("pool", "stop").status == 0
    assert_nothing_left(shared, watch)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": f"/{MARK}-test"}
    return bundle(tmp_path / "bundle", "echo up; exec sleep 1000", linux=linux)


class Arrivals:
    """Waits for names to appear in a directory, or in one that appears in it."""

    def __init__(self, directory: Path) -> None:
        self.fd = call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        self.add(directory)

    def add(self, directory: Path) -> None:
        call("inotify_add_watch", self.fd, encode(str(directory)), _IN_APPEARS)

    def until(self, path: Path) -> None:
        """Until `path` is there."""
        while not os.path.lexists(path):
            assert select.select([self.fd], [], [], EVENT_S)[0], f"{path} never came"
            inotify.drain(self.fd)

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def arrivals(directory: Path) -> Iterator[Arrivals]:
    found = Arrivals(directory)
    try:
        yield found
    finally:
        found.close()


def family(pool: Pool) -> list[int]:
    """The keeper, the one that waits, and its helpers."""
    (waiting,) = pool.await_waiting()
    found = [pool.keeper(), waiting, *helpers_of(waiting)]
    assert len(found) == 4, [name_of(pid) for pid in found]
    assert all(found), found
    return found


def starts(pool: Pool, made: Path, id: str = "after") -> None:
    """A start works."""
    pool.run(id, made)
    pool.runtime.ok("delete", "--force", id)


@pytest.mark.parametrize("how", ["socket removed", "pool removed", "root renamed", "root wiped"])
def test_a_keeper_that_nobody_finds_ends_with_its_vms_and_a_start_begins_another(
    how: str, pool: Pool, made: Path
) -> None:
    pool.start()
    there = family(pool)
    root = pool.runtime.root
    if how == "socket removed":
        (pool.directory / "keeper.sock").unlink()
    elif how == "pool removed":
        shutil.rmtree(pool.directory)
    elif how == "root wiped":
        shutil.rmtree(root)
    else:
        root.rename(root.with_name("renamed"))
    for pid in there:
        await_end(pid)
    if how == "root renamed":
        assert set(os.listdir(root.with_name("renamed") / "@pool")) == {"keeper.log", "lock"}
        shutil.rmtree(root.with_name("renamed"))
    starts(pool, made)
    pool.await_waiting()
    pool.take("taken", made)


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"


@pytest.mark.parametrize("name", ["shim.sock", "leftovers.json", "share", "virtiofsd.log"])
def test_a_taker_that_is_killed_in_the_middle_is_replaced_by_a_start(
    name: str, pool: Pool, made: Path
) -> None:
    pool.start()
    _, waiting, *helpers = family(pool)
    place = pool.runtime.root / "c"
    with arrivals(pool.runtime.root) as seen:
        verb, container = pool.runtime.begin_create("c", made)
        seen.until(place)
        seen.add(place)
        seen.until(place / name)
        os.kill(waiting, signal.SIGSTOP)  # what it was by then is looked at where it stands still
        await_true(lambda: stands_still(waiting), "the taker to stop", BOOT_S)
        was_shim = (place / "shim.sock").exists()
        os.kill(waiting, signal.SIGKILL)
    for pid in (waiting, *helpers):
        await_end(pid)
    status = verb.wait(BOOT_S)
    if was_shim and status:  # as if any shim was killed
        assert len(container.errors().splitlines()) == 1
        assert not place.exists()
        return
    assert status == 0, container.errors()
    assert pool.begun("c") == "warm"
    pool.runtime.ok("start", "c")
    container.expect("up")
    limit = pool.runtime.verb("update", "--memory", str(256 << 20), "c")
    assert limit.status == 0, limit.err
    pool.runtime.ok("delete", "--force", "c")


def settings_of(pool: Pool) -> Settings:
    """As the runtime's file says."""
    rows = pool.rows_set
    return Settings(image=str(rows["image"]), image_store=str(rows["image_store"]), pool_size=1)


class FakeVerb:
    """Claims as `create` does, up to where the test wants it."""

    def __init__(self, pool: Pool, made: Path, id: str) -> None:
        self.directory = state.create(str(pool.runtime.root), id)
        state.write_owner(self.directory, 0)  # or a clean-up would end this process
        self._socket = claims._connect(str(pool.runtime.root))
        claims._send(self._socket, self.directory, oci.load(str(made)), settings_of(pool), None, -1)

    def line(self) -> bytes:
        return claims._line(self._socket, EVENT_S)

    def go(self) -> None:
        self._socket.sendall(b"go\n")

    def vanish(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("phase", ["claimed", "ready", "gone"])
def test_a_verb_that_vanishes_in_the_middle_leaves_nothing(phase: str, pool: Pool, made: Path) -> None:
    pool.start()
    _, *vm = family(pool)
    verb = FakeVerb(pool, made, "c")
    if phase != "claimed":
        assert verb.line().startswith(b"ready ")
    if phase == "gone":
        verb.go()
    verb.vanish()
    for pid in vm:
        # at once; two minutes later where it was said to listen before the verb was gone
        await_end(pid, daemon._UNUSED_S + EVENT_S)
    state.remove(verb.directory)
    pool.await_waiting()
    pool.take("next", made)


@pytest.mark.parametrize("victim", ["waiter", "qemu", "virtiofsd", "keeper"])
def test_whoever_is_killed_when_the_verb_was_told_ready_a_start_works(
    victim: str, pool: Pool, made: Path
) -> None:
    pool.start()
    keeper, waiting, *helpers = family(pool)
    verb = FakeVerb(pool, made, "c")
    assert verb.line().startswith(b"ready ")
    pids = {"keeper": keeper, "waiter": waiting, **{name_of(pid)[:9]: pid for pid in helpers}}
    pids["qemu"] = next(pid for name, pid in pids.items() if name.startswith("qemu"))
    kill(pids[victim])
    if victim in ("waiter", "keeper"):
        assert verb.line() == b""
    verb.vanish()
    for pid in (waiting, *helpers):
        await_end(pid)
    state.remove(verb.directory)
    starts(pool, made)


def test_a_waiting_vm_without_its_virtiofsd_is_replaced(pool: Pool, made: Path) -> None:
    pool.start()
    _, waiting, *helpers = family(pool)
    kill(next(pid for pid in helpers if name_of(pid) == "virtiofsd"))
    await_end(waiting)
    assert pool.await_waiting() != [waiting]
    pool.take("one", made)


def test_of_two_keepers_that_begin_at_once_one_stays(pool: Pool, made: Path) -> None:
    program = Path(__file__).parents[2] / "src" / "bufferzone" / "pool" / "__main__.py"
    root = pool.runtime.root
    pool.directory.mkdir(parents=True, exist_ok=True)
    shape = json.dumps({"settings": shape_of(settings_of(pool)), "spec": {}})
    words = ["/usr/bin/env", "python3", "-IS", str(program), "-root", str(root), "-shape", shape, "keep"]
    with (pool.directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one more, that has not come to its socket yet
        first = subprocess.Popen([*pool.before, *words], stderr=subprocess.PIPE)
        assert first.wait(60) == 0
        assert first.stderr is not None
        assert first.stderr.read() == b""
        first.stderr.close()
        assert pool.run("meanwhile", made) == "warm"
    begun = [subprocess.Popen([*pool.before, *words]) for _ in range(3)]
    await_true(lambda: [one.poll() for one in begun].count(0) == 2, "the end of two of three", EVENT_S)
    pool.await_waiting()
    assert [one.poll() for one in begun].count(None) == 1
    pool.take("one", made)
    assert pool.bz("pool", "stop").status == 0
    assert [one.wait(EVENT_S) for one in begun] == [0, 0, 0]


def nearly_fill(root: Path, inodes: int) -> list[Path]:
    """Leave room for so many files and a few pages; returns what takes the rest."""
    files = fill(root)
    os.truncate(files[0], files[0].stat().st_size - (256 << 10))
    for path in files[-inodes:] if inodes else []:
        path.unlink()
    return files[: len(files) - inodes]


def test_a_disk_that_fills_up_at_any_step_of_taking_ends_no_keeper(pool: Pool, made: Path) -> None:
    with small_disk(pool.runtime.root, size=1 << 20, nr_inodes=200) as root:
        pool.start()
        keeper = pool.keeper()
        ended = []
        for inodes in range(40):
            pool.await_waiting()
            files = nearly_fill(root, inodes)
            result = pool.runtime.try_create("c", made)
            for path in files:
                path.unlink()
            assert is_alive(keeper), pool.log()
            ended.append(result.line if result.status else pool.begun("c"))
            if result.status == 0:
                pool.runtime.ok("delete", "--force", "c")
            assert not (root / "c").exists()
            if ended[-1] == "pool":
                break
        assert ended.pop() == "pool", ended
        assert any(line.endswith(FULL) for line in ended), ended
        assert "warm" in ended, "the one that waited never found the disk full"
        assert all(line == "warm" or line.endswith(FULL) for line in ended), ended
        (waiting,) = pool.await_waiting()
        files = fill(root)
        kill(waiting)
        assert pool.bz("pool", "ls").status == 0
        for path in files:
            path.unlink()
        starts(pool, made)
        pool.await_waiting()
        assert pool.keeper() == keeper
        pool.take("one", made)
        pool.runtime.ok("delete", "--force", "one")
        assert pool.bz("pool", "stop").status == 0


def test_what_is_no_pool_is_in_nobodys_way(pool: Pool, made: Path) -> None:
    pool.runtime.root.mkdir(exist_ok=True)
    pool.directory.write_text("a file")
    try:
        starts(pool, made)
        assert pool.bz("pool", "ls").status == 0
        assert pool.bz("pool", "start").line.endswith("/@pool: File exists")
        assert pool.bz("pool", "stop").status == 0
    finally:
        pool.directory.unlink()
    (pool.directory / "keeper.sock").mkdir(parents=True)
    starts(pool, made)
    assert pool.bz("pool", "start").line.endswith("/@pool: Is a directory")
    await_true(lambda: "cannot listen in" in pool.log(), "the keeper's word", EVENT_S)
    assert "Traceback" not in pool.log()
    shutil.rmtree(pool.directory)


def test_a_socket_of_somebody_else_is_no_pool(pool: Pool, made: Path) -> None:
    pool.directory.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(str(pool.directory / "keeper.sock"))
        deaf.listen(1)
        assert pool.run("one", made) == "warm"
    (pool.directory / "keeper.sock").unlink()


def memory_cgroup(pid: int) -> tuple[Path, str, str]:
    """The process' memory cgroup, and what its usage and its limit are called."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            place = Path("/sys/fs/cgroup/memory" + path)
            return place, "memory.usage_in_bytes", "memory.limit_in_bytes"
    return Path("/sys/fs/cgroup" + lines[-1][2]), "memory.current", "memory.max"


def test_the_limit_of_the_containers_cgroup_bounds_a_vm_that_was_taken(pool: Pool, tmp_path: Path) -> None:
    linux = {**config("")["linux"], "cgroupsPath": f"/{MARK}-memory"}
    made = bundle(tmp_path / "limited", "echo up; exec sleep 1000", linux=linux)
    pool.start()
    pool.take("c", made)
    place, usage, limit = memory_cgroup(pool.runtime.helper_pids("c")["qemu"])
    assert MARK in str(place)

    def used() -> int:
        return int((place / usage).read_text())

    def touch(mib: int) -> int:
        return pool.runtime.verb(
            "exec", "c", "dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=1"
        ).status

    before = used()
    assert touch(150) == 0
    grown = used() - before
    print(f"{before >> 20} MiB when it was taken, {grown >> 20} more for 150 MiB in the guest")
    assert grown > 60 << 20
    (place / limit).write_text(str(used() + (16 << 20)))
    touch(400)
    assert pool.runtime.await_status("c", "stopped", EVENT_S)["pid"] == 0
