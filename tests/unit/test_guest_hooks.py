"""createContainer and startContainer hooks: when, where and with what they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import GuestError
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def hook(script: str, **more: Any) -> dict[str, Any]:
    return {
        "path": "/bin/sh",
        "args": ["sh", "-c", script],
        "env": ["PATH=/bin:/usr/bin", "WHO=hook"],
        **more,
    }


def test_hooks_get_the_state_on_stdin_before_and_after_the_pivot(
    guest: Guest, rootfs: Path, tmp_path: Path
) -> None:
    spec = make_spec(rootfs, "sh", "-c", "cat /state")
    spec["annotations"] = {"key": 'va"lue'}
    spec["hooks"] = {
        "createContainer": [hook(f"cat >{tmp_path}/created; echo $WHO >>{tmp_path}/created")],
        "startContainer": [hook("cat >/state")],
    }
    guest.create("c", spec)
    state, who = (tmp_path / "created").read_text().rstrip().split("}}")
    assert who == "hook"
    assert json.loads(state + "}}") == {
        "ociVersion": "1.0.2",
        "id": "c",
        "status": "creating",
        "pid": 1,
        "bundle": str(tmp_path),
        "annotations": {"key": 'va"lue'},
    }
    assert not (rootfs / "state").exists()
    guest.start("c")
    assert json.loads(guest.read_all("c"))["status"] == "created"


def test_a_failing_create_hook_fails_create_with_its_output(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["hooks"] = {"createContainer": [hook("exit 0"), hook("echo went wrong >&2; exit 3")]}
    with pytest.raises(GuestError) as caught:
        guest.create("c", spec)
    assert caught.value.message == "error running createContainer hook #1: exit status 3, output: went wrong"
    assert caught.value.code == "hook-failed"


def test_a_failing_start_hook_fails_start_and_the_program_never_runs(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "touch", "/ran")
    spec["hooks"] = {"startContainer": [hook("exit 1")]}
    guest.create("c", spec)
    with pytest.raises(GuestError, match="startContainer hook #0: exit status 1"):
        guest.start("c")
    guest.wait("c")
    assert not (rootfs / "ran").exists()


def test_a_hook_that_exceeds_its_time_is_killed_and_others_go_on_meanwhile(
    guest: Guest, rootfs: Path
) -> None:
    spec = make_spec(rootfs, "true")
    spec["hooks"] = {"createContainer": [hook("sleep 1000", timeout=1)]}
    from bufferzone.wire import agent as wire

    slow = guest.send("Create", wire.CreateRequest(id="slow", spec=json.dumps(spec).encode()))
    assert guest.run(make_spec(rootfs, "echo", "free"), id="free")[1] == "free\n"
    with pytest.raises(GuestError, match="ran past specified timeout of 1s"):
        guest.result(slow, wire.PidResponse)


def test_a_missing_hook_is_named(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["hooks"] = {"startContainer": [{"path": "/no/hook"}]}
    guest.create("c", spec)
    with pytest.raises(GuestError, match="fork/exec /no/hook: no such file or directory"):
        guest.start("c")


def test_an_exec_runs_no_hooks(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "cat")
    spec["hooks"] = {"startContainer": [hook("echo x >>/count")]}
    guest.create("c", spec)
    guest.start("c")
    guest.exec("c", "e", "cat", "/count")
    assert guest.read_all("c", "e") == b"x\n"
