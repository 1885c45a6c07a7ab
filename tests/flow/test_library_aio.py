"""The library for asyncio: the same names as the core, awaited; what is cancelled ends."""

from __future__ import annotations

import asyncio

import pytest

import bufferzone
from bufferzone import aio
from flow.cli import DEADLINE_S, needs_host
from flow.test_library import World

pytestmark = needs_host


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("aio"))
    yield world
    assert world.left() == []
    world.close()


@pytest.mark.parametrize("name", ["Sandbox", "Container", "Files", "Process"])
def test_the_names_are_the_cores(name):
    public = {word for word in vars(getattr(bufferzone, name)) if not word.startswith("_")}
    assert public <= set(dir(getattr(aio, name)))


def test_twenty_sandboxes_calls_at_once_are_all_right(world):
    async def work():
        async with aio.Sandbox(root=world.root) as one, aio.Sandbox(root=world.root) as two:
            boxes = [one, two] * 20
            done = await asyncio.gather(*(box.run(["echo", str(n)]) for n, box in enumerate(boxes)))
            await one.files.write("/tmp/x", "text")
            read = await one.files.read_text("/tmp/x")
            listed = [info.name for info in await aio.Sandbox.list(root=world.root)]
            assert {one.name, two.name} <= set(listed)
            return [result.stdout for result in done], read

    outputs, read = asyncio.run(work())
    assert outputs == [f"{number}\n" for number in range(40)]
    assert read == "text"


def test_a_run_that_is_cancelled_is_killed(world):
    async def work():
        box = await aio.Sandbox(root=world.root)
        async with box:
            async with await box.start(["cat"]) as process:
                await process.write(b"line\n")
                assert await process.readline() == b"line\n"
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(box.run(["sh", "-c", "echo $$ >/tmp/pid; exec sleep 1000"]), 1)
            watch = "while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.05; done"
            return await box.run(["sh", "-c", watch], timeout_s=DEADLINE_S)

    assert asyncio.run(work()).ok
