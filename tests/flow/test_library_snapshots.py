"""Sandboxes that are saved once and go on as often as wanted, and running copies of one."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

import bufferzone
from bufferzone.workload import snapshots
from flow.cli import make_rootfs, needs_host
from flow.test_library import World

pytestmark = needs_host

FAILS = ["sh", "-c", "exit 1"]


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


def test_a_snapshot_is_prepared_in_one_call_and_told_that_it_goes_on(world, tmp_path):
    """What a process holds of randomness is told to it: a file, a signal, a program."""
    # here a program begins again, so that the signal may come before its trap: PID 1 hears none of it then
    tell = "cat /seed | wc -c >/told"
    script = f"trap '{tell}' USR1; [ ! -e /seed ] || {tell}; echo up >/ready; while :; do sleep 0.05; done"
    hook = ("sh", "-c", "while ! grep -q 64 /told; do sleep 0.05; done; echo hook >/hook")
    ready = bufferzone.Snapshot.prepare(
        "ready",
        tmp_path / "rootfs",
        command=["sh", "-c", script],
        setup=[["sh", "-c", "echo set up >/setup"]],
        ready=["grep", "-q", "up", "/ready"],
        reseed=bufferzone.Reseed(file="/seed", signal="USR1", hook=hook),
        root=world.root,
    )
    assert [each.name for each in bufferzone.Snapshot.list()] == ["ready"]
    assert ready.size_mib > 0
    assert ready.created.endswith("Z")
    with ready.start(root=world.root) as one, ready.start(root=world.root) as two:
        assert one.files.read("/seed") != two.files.read("/seed")
        assert [one.files.read_text(path) for path in ("/setup", "/hook")] == ["set up\n", "hook\n"]
    ready.remove()
    with pytest.raises(bufferzone.NotFoundError):
        ready.remove()


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"setup": [FAILS]}, "setup-failed"),
        ({"ready": FAILS, "ready_timeout_s": 0.5}, "not-ready"),
        ({"ready": FAILS, "command": ["sh", "-c", ":"]}, "not-ready"),
    ],
)
def test_what_cannot_be_prepared_is_an_exception_and_leaves_nothing(world, tmp_path, wish, code):
    with pytest.raises(bufferzone.BufferzoneError) as caught:
        bufferzone.Snapshot.prepare("ready", tmp_path / "rootfs", root=world.root, **wish)
    assert caught.value.code == code
    assert snapshots.names() == []


def test_a_wish_that_makes_no_sense_is_refused_before_anything_starts():
    for wish in (
        {"reseed": bufferzone.Reseed(signal="NONE")},
        {"reseed": bufferzone.Reseed(file="seed")},
        {"reseed": bufferzone.Reseed(timeout_s=0)},
        {"reseed": bufferzone.Reseed(timeout_s=float("nan"))},
        {"reseed": bufferzone.Reseed(timeout_s=1e9)},
        {"detached": True},
    ):
        with pytest.raises(bufferzone.UsageError):
            bufferzone.Snapshot.prepare("ready", "/nowhere", **wish)
    with pytest.raises(bufferzone.UsageError):
        bufferzone.Sandbox(disk=True)


def test_a_hook_that_fails_ends_the_sandbox(world, tmp_path):
    reseed = bufferzone.Reseed(hook=tuple(FAILS))
    ready = bufferzone.Snapshot.prepare("ready", tmp_path / "rootfs", reseed=reseed, root=world.root)
    with pytest.raises(bufferzone.GuestError) as caught:
        ready.start(root=world.root)
    assert caught.value.code == "hook-failed"
    ready.remove()


def test_a_hook_that_never_ends_is_waited_for_so_long_and_ends_the_sandbox(world, tmp_path):
    hook = ("sh", "-c", "echo asking >&2; while :; do sleep 1; done")
    ready = bufferzone.Snapshot.prepare(
        "ready", tmp_path / "rootfs", reseed=bufferzone.Reseed(hook=hook, timeout_s=0.5), root=world.root
    )
    with pytest.raises(bufferzone.GuestError) as caught:
        ready.start(root=world.root)
    assert caught.value.line() == "the hook of the snapshot did not end within 0.5 s (hint: asking)"
    assert caught.value.code == "hook-failed"
    assert world.left() == []
    ready.remove()


def test_a_snapshot_whose_hook_has_no_limit_of_time_has_the_usual_one(world, tmp_path):
    ready = bufferzone.Snapshot.prepare("ready", tmp_path / "rootfs", root=world.root)
    path = Path(snapshots.find("ready")) / "reseed.json"
    old = {key: value for key, value in json.loads(path.read_text()).items() if key != "timeout_s"}
    path.write_text(json.dumps(old | {"hook": ["sh", "-c", "echo done >/done"]}))
    with ready.start(root=world.root) as box:
        assert box.files.read_text("/done") == "done\n"
    ready.remove()


def test_an_older_one_is_replaced_once_the_new_one_is_whole(world, tmp_path):
    def prepare(word, **more):
        setup = [["sh", "-c", f"echo {word} >/word"]]
        return bufferzone.Snapshot.prepare("ready", tmp_path / "rootfs", setup=setup, root=world.root, **more)

    prepare("old")
    with pytest.raises(bufferzone.ExistsError):
        prepare("new")
    with pytest.raises(bufferzone.GuestError):
        prepare("new", ready=FAILS, ready_timeout_s=0.2, replace=True)
    with bufferzone.Sandbox.from_snapshot("ready", root=world.root) as box:
        assert box.files.read_text("/word") == "old\n"
    prepare("new", replace=True)
    with bufferzone.Sandbox.from_snapshot("ready", root=world.root) as box:
        assert box.files.read_text("/word") == "new\n"
    assert snapshots.names() == ["ready"]
    snapshots.remove("ready")
