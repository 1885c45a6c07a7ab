"""Sandboxes that are saved once and go on as often as wanted, and running copies of one."""

from __future__ import annotations

import functools

import pytest

import bufferzone
from bufferzone.workload import snapshots
from flow.cli import make_rootfs, needs_host
from flow.test_library import World

pytestmark = needs_host


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)
    make_rootfs(tmp_path / "rootfs")
    restore = functools.partial(snapshots.Restore, shim=world.cli.shim)
    monkeypatch.setattr(snapshots, "Restore", restore)
    yield world
    left = world.left()
    world.close()
    assert left == []


def test_what_was_prepared_is_there_in_each_that_goes_on_from_it(world, tmp_path):
    with world.sandbox(tmp_path / "rootfs") as box:
        box.files.write("/prepared", "once")
        box.snapshot("ready")
        assert box.run(["cat", "/prepared"]).stdout == "once"
        with pytest.raises(bufferzone.ExistsError):
            box.snapshot("ready")
    first = bufferzone.Sandbox.from_snapshot("ready", root=world.root)
    second = bufferzone.Sandbox.from_snapshot("ready", name="second", root=world.root)
    with first, second:
        first.files.write("/prepared", "changed")
        assert second.files.read_text("/prepared") == "once"
        assert second.run(["cat", "/proc/sys/kernel/hostname"]).stdout == "second\n"
    assert snapshots.names() == ["ready"]
    snapshots.remove("ready")
    with pytest.raises(bufferzone.NotFoundError):
        bufferzone.Sandbox.from_snapshot("ready", root=world.root)


def test_a_fork_gives_as_many_as_wanted_and_leaves_nothing_saved(world, tmp_path):
    with world.sandbox(tmp_path / "rootfs") as box:
        box.files.write("/x", "1")
        copies = box.fork(2)
        box.files.write("/x", "2")
        assert [copy.files.read_text("/x") for copy in copies] == ["1", "1"]
        assert snapshots.names() == []
        for copy in copies:
            copy.close()


def test_without_an_image_there_is_nothing_to_save(world):
    with world.sandbox() as box:
        with pytest.raises(bufferzone.StateError) as caught:
            box.snapshot("ready")
        assert caught.value.code == "not-saveable"
    assert snapshots.names() == []
