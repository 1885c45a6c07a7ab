"""Freezing, counting, listing and limiting containers through their cgroup."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.container.cgroup import Cgroup, enable_controllers
from bufferzone.container.loop import Loop
from bufferzone.errors import GuestError, SpecError, StateError
from bufferzone.wire import agent as wire
from unit.guest_harness import Guest, cgroup2_mount, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


def controllers() -> list[str]:
    mount = cgroup2_mount()
    return Path(mount, "cgroup.controllers").read_text().split() if mount else []


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def test_a_paused_container_does_nothing_until_it_is_resumed(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.call("Pause", wire.ProcessRef(id="c"))
    events = Path(guest.cgroup_root, "c", "cgroup.events").read_text()
    assert "frozen 1" in events
    guest.write(b"ping", "c")
    pending = guest.send("Read", wire.ReadRequest(id="c", stream=1))
    guest.call("Stats", wire.ProcessRef(id="c"))
    assert not guest.answered(pending)
    guest.call("Resume", wire.ProcessRef(id="c"))
    assert guest.result(pending, wire.ReadResponse).data == b"ping"


def test_pause_and_resume_fit_the_state_or_say_so(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    ref = wire.ProcessRef(id="c")
    guest.call("Pause", ref)  # before its start, as with runc
    with pytest.raises(StateError, match="container not running: paused"):
        guest.call("Pause", ref)
    guest.call("Resume", ref)
    guest.start("c")
    with pytest.raises(StateError, match="container not paused: running"):
        guest.call("Resume", ref)
    guest.call("Pause", ref)
    with pytest.raises(StateError, match="container not running: paused"):
        guest.call("Pause", ref)
    with pytest.raises(StateError, match="cannot exec in a paused container"):
        guest.exec("c", "e", "true")


def test_a_paused_container_can_be_killed(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.call("Pause", wire.ProcessRef(id="c"))
    guest.signal("c", 9)
    assert guest.wait("c").exit_status == 137
    guest.delete("c")


def test_the_process_table_has_a_row_for_each_process_of_the_container(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "read x; exit 0")
    spec["process"]["terminal"] = True
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    pid = guest.create("c", spec)
    guest.start("c")
    guest.exec("c", "e", "sleep", "1000")
    rows = guest.call("Pids", wire.ProcessRef(id="c")).processes
    assert [(row.command, row.uid, row.tty) for row in rows] == [
        ("sh -c read x; exit 0", 1000, "pts/0"),
        ("sleep 1000", 0, "?"),
    ]
    assert rows[0].pid == pid
    assert rows[1].ppid == guest.process.pid
    assert abs(rows[0].start_s - time.time()) < 60


def test_counters_are_numbers_named_after_their_files(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    counters = {c.name: c.value for c in guest.call("Stats", wire.ProcessRef(id="c")).counters}
    assert "cpu.usage_usec" in counters  # there without any controller
    assert all(name.startswith(("cpu.", "pids.", "memory.", "io.")) for name in counters)
    if "pids" in controllers():
        assert counters["pids.current"] == 1
    if "memory" in controllers():
        assert counters["memory.current"] > 0


@pytest.mark.skipif(
    "memory" in controllers(), reason="needs a machine without the memory controller on cgroup v2"
)
def test_a_limit_that_cannot_be_applied_fails_create_and_update(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "cat")
    spec["linux"]["resources"] = {"memory": {"limit": 1 << 26}}
    text = 'cgroup: cannot set memory.max to 67108864: controller "memory" is not available in the guest'
    with pytest.raises(GuestError) as caught:
        guest.create("c", spec)
    assert caught.value.message == text
    del spec["linux"]["resources"]
    guest.create("c", spec)
    request = wire.UpdateRequest(id="c", resources=json.dumps({"memory": {"limit": 1 << 26}}).encode())
    with pytest.raises(GuestError, match=r"memory\.max"):
        guest.call("Update", request)


@pytest.mark.skipif("memory" not in controllers(), reason="needs the memory controller on cgroup v2")
def test_limits_are_written_and_the_oom_killer_is_told(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "head -c 300000000 /dev/zero | tail")
    spec["linux"]["resources"] = {"memory": {"limit": 1 << 24, "swap": 1 << 24}, "pids": {"limit": 20}}
    guest.create("c", spec)
    assert Path(guest.cgroup_root, "c", "memory.max").read_text() == f"{1 << 24}\n"
    oom = guest.send("WaitOom")
    guest.start("c")
    assert guest.result(oom, wire.OomEvents).ids == ["c"]


def test_unified_settings_reach_the_cgroup(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "cat")
    spec["linux"]["resources"] = {"unified": {"cgroup.max.descendants": "3"}}
    guest.create("c", spec)
    assert Path(guest.cgroup_root, "c", "cgroup.max.descendants").read_text() == "3\n"
    request = wire.UpdateRequest(id="c", resources=b'{"unified": {"cgroup.max.descendants": "4"}}')
    guest.call("Update", request)
    assert Path(guest.cgroup_root, "c", "cgroup.max.descendants").read_text() == "4\n"
    with pytest.raises(SpecError):
        guest.call("Update", wire.UpdateRequest(id="c", resources=b"[]"))


def test_cgroups_that_the_container_makes_are_removed_with_it(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(
        rootfs,
        "sh",
        "-c",
        "mkdir -p /sys/fs/cgroup/a/b; echo 0 >/sys/fs/cgroup/a/b/cgroup.procs; echo in; read x; exit",
    )
    spec["mounts"][-1]["options"] = ["rw"]
    guest.create("c", spec)
    guest.start("c")
    guest.read_until(b"in", "c")
    assert os.path.isdir(f"{guest.cgroup_root}/c/a/b")
    assert len(guest.call("Pids", wire.ProcessRef(id="c")).processes) == 1
    guest.signal("c", 9)
    guest.wait("c")
    guest.delete("c")
    assert not os.path.exists(f"{guest.cgroup_root}/c")


def test_a_cgroup_left_behind_empty_does_not_stop_a_new_container(guest: Guest, rootfs: Path) -> None:
    os.makedirs(f"{guest.cgroup_root}/c")
    assert guest.run(make_spec(rootfs, "true"))[0] == 0


def test_a_container_whose_cgroup_somebody_removed_is_deleted(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    guest.start("c")
    guest.wait("c")
    os.rmdir(f"{guest.cgroup_root}/c")
    guest.delete("c")
    assert guest.run(make_spec(rootfs, "true"))[0] == 0


def test_a_cgroup_that_was_emptied_and_removed_before_anybody_looked_is_empty() -> None:
    path = f"{cgroup2_mount()}/bufferzone-test-removed-{os.getpid()}"
    loop, seen = Loop(lambda: None), []
    cgroup = Cgroup(loop, path)
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        Path(path, "cgroup.procs").write_text(str(sleeper.pid))
        cgroup.when("populated", "0", lambda: seen.append("empty"))
        assert not seen
        sleeper.kill()
    os.rmdir(path)
    while not seen:
        loop.run_once()
    assert seen == ["empty"]


def test_only_controllers_that_are_not_handed_down_yet_are(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    handed_down = tmp_path / "cgroup.subtree_control"
    handed_down.write_text("cpu memory\n")
    enable_controllers(str(tmp_path))
    assert handed_down.read_text() == "cpu memory\n"
    handed_down.write_text("memory\n")
    enable_controllers(str(tmp_path))
    assert handed_down.read_text() == "+cpury\n"  # a plain file keeps what was written, from its beginning
