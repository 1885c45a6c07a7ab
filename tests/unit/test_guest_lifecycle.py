"""Creating, starting, signalling, waiting for and deleting containers, and every text a caller matches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.errors import (
    CallerError,
    ExecError,
    ExistsError,
    GuestError,
    NotFoundError,
    SpecError,
    StateError,
)
from bufferzone.wire import agent as wire
from unit.guest_harness import SOURCE, Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


@pytest.mark.parametrize("status", [0, 1, 2, 125, 126, 127, 128, 137, 200, 255])
def test_the_exit_status_of_the_program_is_what_wait_answers(guest: Guest, rootfs: Path, status: int) -> None:
    assert guest.run(make_spec(rootfs, "sh", "-c", f"exit {status}"))[0] == status


@pytest.mark.parametrize("number", [1, 2, 6, 9, 15])
def test_death_by_signal_is_128_plus_its_number_and_names_the_signal(
    guest: Guest, rootfs: Path, number: int
) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", f"sh -c 'kill -{number} $$'; exit $?"))
    guest.start("c")
    assert guest.wait("c").exit_status == 128 + number  # the shell's word for its child
    guest.delete("c")
    guest.create("c", make_spec(rootfs, "sh", "-c", "echo ready; cat"))
    guest.start("c")
    guest.read_until(b"ready", "c")
    guest.signal("c", 9)
    answer = guest.wait("c")
    assert (answer.exit_status, answer.signal, answer.oom) == (137, 9, False)
    assert answer.exited_at_ns > 0


def test_a_shell_that_traps_sigterm_is_stopped_by_it(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "trap 'exit 42' TERM; echo ready; read x"))
    guest.start("c")
    guest.read_until(b"ready", "c")
    guest.signal("c", 15)
    assert guest.wait("c").exit_status == 42


def test_signals_that_python_ignores_have_their_default_effect_in_the_container(
    guest: Guest, rootfs: Path
) -> None:
    _, out, _ = guest.run(make_spec(rootfs, "grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"))
    assert [int(line.split()[1], 16) for line in out.splitlines()] == [0, 0]


def test_the_process_is_pid_1_and_session_leader_of_its_own_pid_namespace(guest: Guest, rootfs: Path) -> None:
    _, out, _ = guest.run(make_spec(rootfs, "sh", "-c", "echo $$; cut -d' ' -f4,5,6 /proc/1/stat"))
    assert out.split("\n")[:2] == ["1", "0 1 1"]


def test_no_descriptor_but_stdio_reaches_the_program(guest: Guest, rootfs: Path) -> None:
    guest.create("other", make_spec(rootfs, "cat"))
    _, out, _ = guest.run(make_spec(rootfs, "ls", "/proc/self/fd"))
    assert out.split() == ["0", "1", "2", "3"]  # 3 is what ls lists with
    guest.delete("other")


def test_a_container_killed_before_start_answers_137_and_can_be_deleted(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    guest.signal("c", 9)
    assert guest.wait("c").exit_status == 137
    with pytest.raises(StateError, match="stopped"):
        guest.start("c")
    guest.delete("c")


def test_a_created_container_can_be_deleted_and_its_waiter_is_answered(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    waiting = guest.send("Wait", wire.ProcessRef(id="c"))
    guest.delete("c")
    assert guest.result(waiting, wire.WaitResponse).exit_status == 137
    with pytest.raises(NotFoundError, match="does not exist"):
        guest.wait("c")


def test_signalling_a_finished_process_says_that_it_is_finished(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"))
    guest.start("c")
    guest.wait("c")
    with pytest.raises(StateError, match="process already finished") as caught:
        guest.signal("c", 15)
    assert caught.value.code == "process-finished"


def test_a_running_container_is_not_deleted(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    with pytest.raises(StateError, match='cannot delete container "c" that is not stopped: running'):
        guest.delete("c")
    guest.signal_quietly("c")
    guest.delete("c")


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("number", [1, 15, 9, 10, 34])
def test_a_signal_that_ends_a_program_ends_one_that_waits_for_its_start(
    guest: Guest, rootfs: Path, number: int, everyone: bool
) -> None:
    guest.create("c", make_spec(rootfs, "sleep", "1000"))
    guest.signal("c", number, all=everyone)
    answer = guest.wait("c")
    assert (answer.exit_status, answer.signal) == (128 + number, number)


def test_a_signal_that_ends_no_program_ends_none_that_waits_for_its_start(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "exit 7"))
    for number in (17, 18, 23, 28):  # CHLD, CONT, URG, WINCH
        guest.signal("c", number)
    guest.start("c")
    assert guest.wait("c").exit_status == 7


def test_signal_all_reaches_every_process_of_the_container(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "sleep 1000 & sleep 1000 & echo two; wait; echo left"))
    guest.start("c")
    guest.read_until(b"two", "c")
    guest.signal("c", 9, all=True)
    assert guest.wait("c").exit_status == 137
    assert guest.read_all("c") == b""


@pytest.mark.parametrize(
    ("name", "status_code", "text"),
    [
        ("nothing", "exec-not-found", 'exec: "nothing": executable file not found in $PATH'),
        ("/no/thing", "exec-not-found", 'exec: "/no/thing": stat /no/thing: no such file or directory'),
        ("/etc/passwd", "exec-not-executable", 'exec: "/etc/passwd": permission denied'),
        ("/etc", "exec-not-executable", 'exec: "/etc": permission denied'),
        ("plain", "exec-not-found", 'exec: "plain": executable file not found in $PATH'),
    ],
)
def test_a_program_that_cannot_be_run_fails_create_with_the_text_of_runc(
    guest: Guest, rootfs: Path, name: str, status_code: str, text: str
) -> None:
    (rootfs / "bin/plain").write_text("in $PATH, but nobody may execute it")
    with pytest.raises(ExecError) as caught:
        guest.create("c", make_spec(rootfs, name))
    assert (caught.value.message, caught.value.code) == (text, status_code)
    guest.create("c", make_spec(rootfs, "true"))  # the id is free again, and so is the cgroup


def test_a_failure_of_execve_itself_is_the_error_of_start(guest: Guest, rootfs: Path) -> None:
    (rootfs / "bin/garbage").write_bytes(b"\x7fELF nonsense")
    (rootfs / "bin/garbage").chmod(0o755)
    (rootfs / "bin/orphan").write_text("#!/no/interpreter\n")
    (rootfs / "bin/orphan").chmod(0o755)
    for name, code in (("garbage", "exec-not-executable"), ("orphan", "exec-not-found")):
        guest.create("c", make_spec(rootfs, name))
        with pytest.raises(ExecError) as caught:
            guest.start("c")
        assert caught.value.code == code
        assert f"/bin/{name}" in caught.value.message
        guest.wait("c")
        guest.delete("c")


def test_an_unknown_container_does_not_exist_for_any_method(guest: Guest) -> None:
    for method in ("Start", "Wait", "Delete", "Pause", "Resume", "Stats", "Pids", "CloseStdin"):
        with pytest.raises(NotFoundError, match="does not exist"):
            guest.call(method, wire.ProcessRef(id="ghost"))


def test_an_id_in_use_is_refused_and_the_first_container_lives_on(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "sh", "-c", "exit 5"))
    with pytest.raises(ExistsError):
        guest.create("c", make_spec(rootfs, "true"))
    guest.start("c")
    assert guest.wait("c").exit_status == 5


@pytest.mark.parametrize("id", ["", "..", "a/b", "x" * 300, "white space", "nul\0"])
def test_an_id_that_is_no_file_name_is_refused(guest: Guest, rootfs: Path, id: str) -> None:
    with pytest.raises(CallerError):
        guest.create(id, make_spec(rootfs, "true"))


def test_nonsense_in_the_spec_is_an_error_that_says_where(guest: Guest, rootfs: Path) -> None:
    with pytest.raises(SpecError, match=r"config\.json"):
        guest.call("Create", wire.CreateRequest(id="c", spec=b"{"))
    for change, where in (
        ({"root": {"path": "/no/where"}}, "root.path"),
        ({"process": {"args": [], "cwd": "/"}}, "process.args"),
        ({"process": {"args": ["true"], "cwd": "relative"}}, "process.cwd"),
        ({"process": {"args": ["true"], "env": ["novalue"], "cwd": "/"}}, "process.env"),
    ):
        with pytest.raises(SpecError) as caught:
            guest.create("c", {**make_spec(rootfs, "true"), **change})
        assert caught.value.message.startswith(where)
    spec = make_spec(rootfs, "true")
    spec["linux"]["namespaces"].append({"type": "galaxy"})
    with pytest.raises(SpecError, match=r"linux\.namespaces: unknown type: galaxy"):
        guest.create("c", spec)


def test_an_unexpected_type_in_the_spec_is_an_error_reply_and_the_agent_lives(
    guest: Guest, rootfs: Path
) -> None:
    spec = make_spec(rootfs, "true")
    for key, value in (("linux", []), ("mounts", {"a": 1}), ("process", "sh"), ("hooks", 7)):
        with pytest.raises((GuestError, CallerError)):
            guest.create("c", {**spec, key: value})
    assert guest.run(spec)[0] == 0


def test_an_unknown_method_and_a_malformed_request_are_errors_of_the_caller(guest: Guest) -> None:
    wire.METHODS["Nonsense"] = (wire.Empty, wire.Empty)
    try:
        with pytest.raises(CallerError, match="no such method"):
            guest.call("Nonsense")
    finally:
        del wire.METHODS["Nonsense"]
    with pytest.raises(CallerError, match="malformed"):
        guest.result(guest.send("Start", _Raw(b"\xff\xff")), wire.Empty)


class _Raw(wire.Empty):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def encode(self) -> bytes:
        return self.data


def test_many_containers_live_at_once_and_none_holds_up_another(guest: Guest, rootfs: Path) -> None:
    ids = [f"c{number}" for number in range(8)]
    for id in ids:
        guest.create(id, make_spec(rootfs, "sh", "-c", f"cat; echo {id}"))
        guest.start(id)
    waits = {id: guest.send("Wait", wire.ProcessRef(id=id)) for id in ids}
    for id in reversed(ids):
        assert not guest.answered(waits[id])
        guest.close_stdin(id)
        assert guest.read_all(id) == f"{id}\n".encode()
        assert guest.result(waits[id], wire.WaitResponse).exit_status == 0
        guest.delete(id)


def test_fifty_lives_in_a_row_leave_no_descriptor_behind(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    guest.run(spec)
    before = len(os.listdir(f"/proc/{guest.process.pid}/fd"))
    for number in range(50):
        assert guest.run(spec, id=f"c{number}")[0] == 0
    assert len(os.listdir(f"/proc/{guest.process.pid}/fd")) == before


def test_what_is_left_when_init_ends_is_killed_by_delete(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    spec["linux"]["namespaces"] = [{"type": "mount"}]
    del spec["hostname"]
    guest.create("c", spec)
    guest.start("c")
    survivor = int(guest.read_all("c"))
    guest.wait("c")
    assert os.path.exists(f"/proc/{survivor}/exe")  # its name may still be the shell's
    guest.delete("c")
    assert not os.path.exists(f"/proc/{survivor}/exe")


def test_hello_tells_the_kernel_and_leaves_a_hosting_machine_alone(guest: Guest) -> None:
    answer = guest.call("Hello", wire.HelloRequest(entropy=b"x" * 32, hostname="never"))
    assert answer.kernel == os.uname().release
    assert answer.cpus == os.cpu_count()
    assert answer.memory > 1 << 20
    assert os.uname().nodename != "never"


def test_shutdown_kills_everything_and_answers_before_it_ends(guest: Guest, rootfs: Path) -> None:
    guest.create("a", make_spec(rootfs, "cat"))
    guest.start("a")
    guest.create("b", make_spec(rootfs, "cat"))
    waiting = guest.send("Wait", wire.ProcessRef(id="a"))
    guest.call("Shutdown")
    assert guest.result(waiting, wire.WaitResponse).exit_status == 137
    assert guest.process.wait(timeout=120) == 0


def test_the_spec_travels_as_json_with_any_characters(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "printf", "%s|%s", 'naïve \U0001f600 "q" \\ \n', "\udcff")
    status, _, _ = 0, None, None
    guest.create("c", json.loads(json.dumps(spec)))
    guest.start("c")
    assert guest.read_all("c") == 'naïve \U0001f600 "q" \\ \n|'.encode() + b"\xff"
    assert guest.wait("c").exit_status == status


def test_containers_made_at_once_on_one_root_do_not_get_in_each_others_way(
    guest: Guest, rootfs: Path
) -> None:
    spec = json.dumps(make_spec(rootfs, "true")).encode()
    creates = [guest.send("Create", wire.CreateRequest(id=f"c{number}", spec=spec)) for number in range(8)]
    for stream in creates:
        assert guest.result(stream, wire.PidResponse).pid > 0


def test_the_agent_imports_no_module_that_is_slow_to_import() -> None:
    code = "import bufferzone.guest.__main__, sys; print(*sys.modules)"
    command = [sys.executable, "-ISBc", f"import sys; sys.path.insert(0, {SOURCE!r}); {code}"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "bufferzone.guest.agent" in loaded
    slow = {
        "asyncio",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "json",
        "logging",
        "re",
        "signal",
        "socket",
    }
    assert loaded.isdisjoint(slow | {"selectors", "subprocess", "threading", "typing"})
