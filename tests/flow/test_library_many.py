"""A hundred sandboxes of one process at a time: from threads, from asyncio, across forks, and their end.

With the real shims and agents; the VMM `host` runs them without a VM, so that a hundred fit on any machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bufferzone
from bufferzone import aio, state
from flow.cli import DEADLINE_S, needs_host
from flow.test_library import World

pytestmark = needs_host

MANY = 100
CALLS = 3  # to each at the same time
SCRIPT = 'cat /tmp/number -; echo "err $0" >&2; exit "$1"'
FORKED = """
import json, os
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(25) as pool:
    boxes = [*pool.map(lambda number: sandbox(), range(25))]

def ask(number):
    return boxes[number].run(["sh", "-c", "echo $0; cat", f"{os.getpid()}"], stdin=f"{number}").stdout

def all_right():
    with ThreadPoolExecutor(25) as pool:
        return [*pool.map(ask, range(25))] == [f"{os.getpid()}\\n{number}" for number in range(25)]

children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        os._exit(0 if all_right() else 1)
    children.append(child)
mine = all_right()
theirs = [os.waitpid(child, 0)[1] for child in children]
print(json.dumps([mine, theirs, all_right(), [box.name for box in boxes]]), flush=True)
sys.stdin.read()
"""


def watches_left() -> int:
    """How many inotify instances root may still make: each agent has one, and here all have one kernel."""
    links = [link for pid in filter(str.isdigit, os.listdir("/proc")) for link in links_of(pid)]
    most = Path("/proc/sys/fs/inotify/max_user_instances").read_text()
    return int(most) - links.count("anon_inode:inotify")


def links_of(pid: str) -> list[str]:
    """What a process has open, by name."""
    try:
        return [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it has just ended
        return []


def test_forks_use_twenty_five_at_once_and_a_killed_program_leaves_none(tmp_path):  # before the hundred
    world = World(tmp_path)
    program = world.program(FORKED)
    said = program.stdout.readline()
    mine, theirs, after, names = json.loads(said)
    assert (mine, theirs, after) == (True, [0] * 4, True)
    shims = [os.pidfd_open(state.owner_pid(os.path.join(world.root, name))) for name in names]
    program.kill()
    program.communicate()
    for shim in shims:
        assert select.select([shim], [], [], DEADLINE_S)[0], "a shim lives on"
        os.close(shim)
    world.sandbox().close()  # the next one tidies
    left = world.left()
    world.close()
    assert left == []


class Many:
    """A world with a hundred sandboxes that were begun at the same moment; each knows its number."""

    def __init__(self, base: Path) -> None:
        self.world = World(base)
        self.pool = ThreadPoolExecutor(MANY)
        self._together = threading.Barrier(MANY)
        self.files_before = open_files()
        self.boxes = list(self.pool.map(self._begin, range(MANY)))

    def _begin(self, number: int) -> bufferzone.Sandbox:
        self._together.wait(DEADLINE_S)
        box = self.world.sandbox()
        box.files.write("/tmp/number", f"{number}:")
        return box

    def close(self) -> None:
        """End all of them at once; then they are gone, and so is every descriptor that we had for them."""
        list(self.pool.map(lambda box: box.close(), self.boxes))
        self.pool.shutdown()
        left, files = self.world.left(), open_files()
        self.world.close()
        assert left == []
        assert files == self.files_before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    if (left := watches_left()) < MANY + 5:
        pytest.skip(f"fs.inotify.max_user_instances: {left} are left for the agents of {MANY} sandboxes")
    many = Many(tmp_path_factory.mktemp("many"))
    yield many
    many.close()


def test_each_is_one_of_its_own_and_all_are_listed(many):
    names = {box.name for box in many.boxes}
    assert len(names) == MANY
    listed = {info.name: info.status for info in bufferzone.Sandbox.list(root=many.world.root)}
    assert {listed[name] for name in names} == {"running"}
    assert len({state.owner_pid(os.path.join(many.world.root, name)) for name in names}) == MANY


def test_calls_to_all_of_them_at_once_each_get_their_own_answer(many):
    def ask(call: int) -> tuple[str, str, int]:
        number = call % MANY
        words = ["sh", "-c", SCRIPT, str(call), str(call % 7)]
        done = many.boxes[number].run(words, stdin=f"asked {call}", timeout_s=DEADLINE_S)
        return done.stdout, done.stderr, done.exit_code

    with ThreadPoolExecutor(MANY * CALLS) as pool:
        told = list(pool.map(ask, range(MANY * CALLS)))
    assert told == [(f"{n % MANY}:asked {n}", f"err {n}\n", n % 7) for n in range(MANY * CALLS)]


def test_files_of_all_of_them_at_once_are_not_mixed_up(many):
    def work(number: int) -> bytes:
        files, data = many.boxes[number].files, bytes([number]) * 100_000
        files.write("/srv/data", data)
        assert [file.size for file in files.list("/srv")] == [len(data)]
        read = files.read("/srv/data")
        files.remove("/srv/data")
        return read

    assert list(many.pool.map(work, range(MANY))) == [bytes([number]) * 100_000 for number in range(MANY)]


def test_asyncio_reaches_all_of_them_at_once(many):
    async def ask(name: str) -> str:
        async with await aio.Sandbox.attach(name, root=many.world.root) as box:
            return (await box.run(["cat", "/tmp/number"], timeout_s=DEADLINE_S)).stdout

    async def work() -> list[str]:
        return await asyncio.gather(*(ask(box.name) for box in many.boxes))

    assert asyncio.run(work()) == [f"{number}:" for number in range(MANY)]


def test_of_ten_that_want_one_name_at_once_one_gets_it(many):
    def begin(_: int) -> bufferzone.Sandbox | None:
        try:
            return many.world.sandbox(name="wanted")
        except bufferzone.ExistsError:
            return None

    made = [box for box in many.pool.map(begin, range(10)) if box is not None]
    assert len(made) == 1
    assert made[0].run(["echo", "mine"]).stdout == "mine\n"
    made[0].close()
    assert "wanted" not in many.world.left()


def test_one_that_ends_disturbs_no_other(many):
    lost = many.world.sandbox()
    with many.boxes[0].start(["cat"]) as process:
        lost.remove()
        process.stdin.write(b"line\n")
        assert process.stdout.readline() == b"line\n"
    with pytest.raises(bufferzone.BufferzoneError):
        lost.run(["true"])
    assert all(many.pool.map(lambda box: box.run(["true"]).ok, many.boxes))
