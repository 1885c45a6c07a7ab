"""startContainer hooks: when, where, as whom and with what they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import GuestError
from bufferzone.linux.libseccomp import compile_profile
from bufferzone.wire import agent as wire
from bufferzone.wire.proto import Empty
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


def test_a_hook_gets_the_state_on_stdin_in_the_container(guest: Guest, rootfs: Path, tmp_path: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "cat /state")
    spec["annotations"] = {"key": 'va"lue'}
    spec["bundle"] = "/the/host's"
    spec["hooks"] = {"startContainer": [hook("cat >/state; echo $WHO >>/state")]}
    guest.create("c", spec)
    assert not (rootfs / "state").exists()
    guest.start("c")
    state, who = guest.read_all("c").decode().rstrip().split("}}")
    assert who == "hook"
    assert json.loads(state + "}}") == {
        "ociVersion": "1.0.2",
        "id": "c",
        "status": "created",
        "pid": 1,
        "bundle": "/the/host's",
        "annotations": {"key": 'va"lue'},
    }


def test_what_names_no_variable_is_left_out(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "cat /state")
    spec["hooks"] = {"startContainer": [hook("env >/state", env=["PATH=/bin", "=x", "bare", "", "A=b=c"])]}
    guest.create("c", spec)
    guest.start("c")
    assert {"A=b=c", "PATH=/bin"} == set(guest.read_all("c").decode().split()) - {"SHLVL=1", "PWD=/"}


def test_a_hook_runs_as_the_container_will_under_its_filter_and_with_a_path(
    guest: Guest, rootfs: Path
) -> None:
    """As with runc, whose startContainer hooks come after the identity and the filter."""
    spec = make_spec(rootfs, "true")
    spec["process"]["user"] = {"uid": 1000, "gid": 1001}
    (rootfs / "tmp").chmod(0o777)
    told = "id -u; id -g; echo $PATH; grep Seccomp: /proc/self/status; mkdir /tmp/no 2>/dev/null; echo $?"
    spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", f"({told}) >/tmp/told"]}]}
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    }
    seccomp = compile_profile(profile)
    request = wire.CreateRequest(
        id="c", spec=json.dumps(spec).encode(), seccomp=seccomp.program, seccomp_flags=seccomp.flags
    )
    guest.call("Create", request)
    guest.start("c")
    guest.wait("c")
    uid, gid, path, mode, status = (rootfs / "tmp" / "told").read_text().split("\n")[:5]
    assert (uid, gid) == ("1000", "1001")
    assert path.endswith("/bin")
    assert mode.split() == ["Seccomp:", "2"]
    assert status == "1"


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
    spec["hooks"] = {"startContainer": [hook("sleep 1000", timeout=1)]}
    guest.create("slow", spec)
    slow = guest.send("Start", wire.ProcessRef(id="slow"))
    assert guest.run(make_spec(rootfs, "echo", "free"), id="free")[1] == "free\n"
    with pytest.raises(GuestError, match="ran past specified timeout of 1s"):
        guest.result(slow, Empty)


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
