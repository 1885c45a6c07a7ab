"""Further processes in a running container."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.errors import ExecError, ExistsError, NotFoundError, StateError
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


def test_an_exec_is_in_every_namespace_and_the_cgroup_of_its_container(guest: Guest, rootfs: Path) -> None:
    guest.create(
        "c", make_spec(rootfs, "sh", "-c", "readlink /proc/self/ns/*; cat /proc/self/cgroup; hostname; cat")
    )
    guest.start("c")
    init = guest.read_until(b"inside\n", "c")
    guest.exec("c", "e", "sh", "-c", "readlink /proc/self/ns/*; cat /proc/self/cgroup; hostname")
    assert guest.read_all("c", "e") == init
    assert guest.wait("c", "e").exit_status == 0


def test_an_exec_has_a_pid_beside_that_of_init_and_its_own_stdio(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "sh", "-c", "read x; echo $x; echo $PPID; [ $$ -gt 1 ]")
    guest.write(b"mine\n", "c", "e")
    assert guest.read_all("c", "e") == b"mine\n0\n"
    assert guest.wait("c", "e").exit_status == 0
    guest.write(b"init\n", "c")
    assert guest.read("c") == b"init\n"


def test_user_cwd_and_environment_of_an_exec_are_its_own(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    user = {"uid": 1000, "gid": 1001, "additionalGids": [7]}
    guest.exec(
        "c",
        "e",
        "sh",
        "-c",
        "id -u; id -g; id -G; pwd; echo $A",
        user=user,
        cwd="/tmp",
        env=["PATH=/bin", "A=b"],
    )
    assert guest.read_all("c", "e").decode().splitlines() == ["1000", "1001", "1001 7", "/tmp", "b"]


def test_an_exec_without_capabilities_of_its_own_has_those_of_the_container(
    guest: Guest, rootfs: Path
) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "grep CapEff /proc/self/status; cat"))
    guest.start("c")
    init = guest.read("c")
    guest.exec("c", "same", "grep", "CapEff", "/proc/self/status")
    assert guest.read_all("c", "same") == init
    guest.exec("c", "none", "grep", "CapEff", "/proc/self/status", capabilities={})
    assert guest.read_all("c", "none").split()[1] == b"0" * 16


def test_a_missing_program_fails_the_exec_and_frees_its_id(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    with pytest.raises(ExecError, match=r'exec: "nothing": executable file not found in \$PATH') as caught:
        guest.exec("c", "e", "nothing")
    assert caught.value.code == "exec-not-found"
    (rootfs / "bin/orphan").write_text("#!/no/interpreter\n")
    (rootfs / "bin/orphan").chmod(0o755)
    with pytest.raises(ExecError):
        guest.exec("c", "e", "orphan")
    guest.exec("c", "e", "true")
    assert guest.wait("c", "e").exit_status == 0


def test_an_exec_needs_a_container_that_has_not_ended(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    guest.exec("c", "e", "sh", "-c", "exit 7")
    assert guest.wait("c", "e").exit_status == 7
    guest.start("c")
    guest.wait("c")
    with pytest.raises(StateError, match="cannot exec in a stopped container"):
        guest.exec("c", "e", "true")


def test_an_exec_id_is_taken_until_it_is_deleted(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "cat")
    with pytest.raises(ExistsError):
        guest.exec("c", "e", "true")
    with pytest.raises(StateError, match="not stopped"):
        guest.delete("c", "e")
    guest.signal("c", 9, "e")
    assert guest.wait("c", "e").exit_status == 137
    guest.delete("c", "e")
    with pytest.raises(NotFoundError):
        guest.wait("c", "e")
    guest.exec("c", "e", "true")


def test_the_end_of_init_ends_every_exec(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.exec("c", "e", "sleep", "1000")
    guest.signal("c", 9)
    assert guest.wait("c").exit_status == 137
    assert guest.wait("c", "e").exit_status == 137
    assert guest.read_all("c", "e") == b""


def test_an_exec_does_not_change_the_agents_own_namespaces(guest: Guest, rootfs: Path) -> None:
    before = [
        os.readlink(f"/proc/{guest.process.pid}/ns/{name}")
        for name in ("pid", "pid_for_children", "mnt", "time")
    ]
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    for number in range(5):
        guest.exec("c", f"e{number}", "true")
    after = [
        os.readlink(f"/proc/{guest.process.pid}/ns/{name}")
        for name in ("pid", "pid_for_children", "mnt", "time")
    ]
    assert after == before


def test_many_execs_at_once_are_told_apart(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    for number in range(10):
        guest.exec("c", f"e{number}", "sh", "-c", f"read x; exit {number}")
    waits = [guest.send("Wait", wire.ProcessRef(id="c", exec_id=f"e{number}")) for number in range(10)]
    for number in reversed(range(10)):
        guest.close_stdin("c", f"e{number}")
    assert [guest.result(stream, wire.WaitResponse).exit_status for stream in waits] == list(range(10))


def ask_with_exec(guest: Guest, *args: str) -> list[int]:
    """Exec with everything that is asked of a process, in one write: the streams of the requests."""
    ref = wire.ProcessRef(id="c", exec_id="e")
    text = json.dumps({"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
    return guest.send_all(
        ("Exec", wire.ProcessRequest(id="c", exec_id="e", process=text.encode())),
        ("Read", wire.ReadRequest(id="c", exec_id="e", stream=wire.STDOUT)),
        ("Read", wire.ReadRequest(id="c", exec_id="e", stream=wire.STDERR)),
        ("CloseStdin", ref),
        ("Wait", ref),
    )


def test_what_is_asked_together_with_an_exec_is_answered_as_if_asked_later(
    guest: Guest, rootfs: Path
) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    made, out, err, closed, wait = ask_with_exec(guest, "sh", "-c", "cat; echo out; echo err >&2; exit 7")
    assert guest.result(made, wire.PidResponse).pid > 0
    assert guest.result(out, wire.ReadResponse).data == b"out\n"
    assert guest.result(err, wire.ReadResponse).data == b"err\n"
    guest.result(closed, Empty)
    assert guest.result(wait, wire.WaitResponse).exit_status == 7
    assert guest.read("c", "e") == b""


def test_what_is_asked_together_with_an_exec_that_fails_is_answered_too(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    made, *others = ask_with_exec(guest, "nothing")
    with pytest.raises(ExecError):
        guest.result(made, wire.PidResponse)
    end = time.monotonic() + 60
    while not all(guest.answered(stream) for stream in others):
        assert time.monotonic() < end
    guest.signal("c", 9)
    refused = ask_with_exec(guest, "true")
    while not all(guest.answered(stream) for stream in refused):
        assert time.monotonic() < end
