"""What a container process is: user, groups, capabilities, umask, limits, filters, as its kernel tells it."""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.errors import ExecError, GuestError, SpecError
from bufferzone.linux import capabilities
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def status_of(guest: Guest, spec: dict[str, Any], seccomp: bytes = b"") -> dict[str, str]:
    """/proc/self/status of a container process."""
    spec["process"]["args"] = ["cat", "/proc/self/status"]
    code, out, err = guest.run(spec, seccomp=seccomp)
    assert (code, err) == (0, "")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in out.splitlines())}


def deny(*numbers: int) -> bytes:
    """A seccomp program: EPERM for the system calls of these numbers (x86-64)."""
    code = [(0x20, 0, 0, 0)]  # load the number
    for at, number in enumerate(numbers):
        code.append((0x15, len(numbers) - at, 0, number))
    code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
    return b"".join(struct.pack("=HBBI", *row) for row in code)


def test_uid_gid_groups_and_umask_are_those_of_the_spec(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs)
    spec["process"]["user"] = {"uid": 1000, "gid": 2000, "additionalGids": [5, 3000], "umask": 0o027}
    status = status_of(guest, spec)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["2000"] * 4
    assert status["Groups"].split() == ["5", "3000"]
    assert status["Umask"] == "0027"


def test_root_has_no_groups_of_the_agent_and_the_default_umask(guest: Guest, rootfs: Path) -> None:
    status = status_of(guest, make_spec(rootfs))
    assert status["Groups"] == ""
    assert status["Umask"] == "0022"


def test_root_has_the_capabilities_of_its_bounding_set(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs)
    names = ["CAP_CHOWN", "CAP_NET_RAW"]
    spec["process"]["capabilities"] = {"bounding": names, "effective": names, "permitted": names}
    status = status_of(guest, spec)
    assert [int(status[key], 16) for key in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")] == [
        0x2001,
        0x2001,
        0x2001,
        0,
        0,
    ]


def test_a_user_keeps_ambient_capabilities_and_no_others(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs)
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    both, one = ["CAP_CHOWN", "CAP_NET_RAW"], ["CAP_NET_RAW"]
    spec["process"]["capabilities"] = {
        "bounding": both,
        "effective": both,
        "permitted": both,
        "inheritable": one,
        "ambient": one,
    }
    status = status_of(guest, spec)
    assert [int(status[key], 16) for key in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")] == [
        0x2001,
        0x2000,
        0x2000,
        0x2000,
        0x2000,
    ]


def test_without_capabilities_in_the_spec_there_are_none(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs)
    del spec["process"]["capabilities"]
    status = status_of(guest, spec)
    assert {int(status[key], 16) for key in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}


def test_capabilities_no_kernel_knows_are_ignored_as_by_runc(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs)
    names = ["CAP_CHOWN", "CAP_FROM_THE_FUTURE"]
    spec["process"]["capabilities"] = {"bounding": names, "effective": names, "permitted": names}
    assert int(status_of(guest, spec)["CapBnd"], 16) == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privileges_is_set_exactly_when_asked(guest: Guest, rootfs: Path, wanted: bool) -> None:
    spec = make_spec(rootfs)
    spec["process"]["noNewPrivileges"] = wanted
    assert status_of(guest, spec)["NoNewPrivs"] == str(int(wanted))


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("uid", [0, 1000])
def test_the_seccomp_filter_holds_with_and_without_no_new_privileges(
    guest: Guest, rootfs: Path, no_new_privileges: bool, uid: int
) -> None:
    spec = make_spec(rootfs)
    spec["process"]["noNewPrivileges"] = no_new_privileges
    spec["process"]["user"] = {"uid": uid, "gid": uid}
    program = deny(83, 258)  # mkdir, mkdirat
    assert status_of(guest, spec, program)["Seccomp"] == "2"
    spec["process"]["args"] = ["mkdir", "/tmp/x"]
    code, _, err = guest.run(spec, seccomp=program)
    assert code == 1
    assert "Operation not permitted" in err
    assert not (rootfs / "tmp/x").exists()


def test_an_exec_gets_its_own_filter_and_not_that_of_the_container(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"), seccomp=deny(83, 258))
    guest.start("c")
    guest.exec("c", "free", "mkdir", "/made")
    assert guest.wait("c", "free").exit_status == 0
    guest.exec("c", "bound", "mkdir", "/never", seccomp=deny(83, 258))
    assert guest.wait("c", "bound").exit_status == 1
    assert (rootfs / "made").exists()
    assert not (rootfs / "never").exists()


def test_a_malformed_filter_is_the_error_of_start(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "true"), seccomp=b"\xff" * 16)
    with pytest.raises(GuestError, match="seccomp"):
        guest.start("c")


def test_rlimits_are_those_of_the_spec(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "ulimit -n; ulimit -c; ulimit -Hc; ulimit -f")
    spec["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_FSIZE", "soft": 1 << 20, "hard": 1 << 20},
    ]
    assert guest.run(spec)[1].split() == ["64", "0", "0", "2048"]


def test_an_unknown_rlimit_names_itself(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["process"]["rlimits"] = [{"type": "RLIMIT_LUCK", "soft": 1, "hard": 1}]
    guest.create("c", spec)
    with pytest.raises(SpecError, match="RLIMIT_LUCK"):
        guest.start("c")
    assert guest.wait("c").exit_status == 137


@pytest.mark.skipif(
    bool(capabilities.permitted() >> 24 & 1), reason="needs a machine that withholds CAP_SYS_RESOURCE"
)
def test_a_limit_above_what_the_machine_allows_is_the_error_of_start(guest: Guest, rootfs: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] + 1
    spec = make_spec(rootfs, "sh", "-c", "ulimit -n")
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": hard, "hard": hard}]
    guest.create("c", spec)
    with pytest.raises(GuestError) as caught:
        guest.start("c")
    assert caught.value.message == "error setting rlimit RLIMIT_NOFILE: operation not permitted"


def test_the_oom_score_is_that_of_the_spec(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "cat", "/proc/self/oom_score_adj")
    spec["process"]["oomScoreAdj"] = 321
    assert guest.run(spec)[1] == "321\n"


def test_io_priority_scheduler_and_personality_are_those_of_the_spec(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(
        rootfs,
        "sh",
        "-c",
        "ionice -p $$; cut -d' ' -f41,19 /proc/self/stat; uname -m; cat /proc/self/personality",
    )
    spec["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    spec["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 5}
    spec["linux"]["personality"] = {"domain": "LINUX32"}
    _, out, _ = guest.run(spec)
    assert out.splitlines()[:3] == ["best-effort: prio 6", "5 3", "i686"]


def test_the_environment_is_that_of_the_spec_plus_home(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "env")
    spec["process"]["env"] = ["PATH=/bin", "A=first", "A=second", "EMPTY=", "EQ=a=b"]
    assert sorted(guest.run(spec)[1].splitlines()) == [
        "A=second",
        "EMPTY=",
        "EQ=a=b",
        "HOME=/root",
        "PATH=/bin",
    ]
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    assert "HOME=/home" in guest.run(spec)[1].splitlines()
    spec["process"]["user"] = {"uid": 4711, "gid": 1000}
    assert "HOME=/" in guest.run(spec)[1].splitlines()
    spec["process"]["env"].append("HOME=/mine")
    assert "HOME=/mine" in guest.run(spec)[1].splitlines()


def test_a_missing_working_directory_is_made(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "pwd")
    spec["process"]["cwd"] = "/not/there/yet"
    assert guest.run(spec)[1] == "/not/there/yet\n"
    assert (rootfs / "not/there/yet").is_dir()


def test_a_working_directory_the_user_may_not_enter_is_entered_with_the_rights_of_root_as_by_runc(
    guest: Guest, rootfs: Path
) -> None:
    (rootfs / "private").mkdir(mode=0o700)
    spec = make_spec(rootfs, "sh", "-c", "ls || echo denied")
    spec["process"].update(cwd="/private", user={"uid": 1000, "gid": 1000})
    assert "denied" in guest.run(spec)[1]


def test_a_working_directory_that_is_a_file_is_an_error(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["process"]["cwd"] = "/etc/passwd"
    with pytest.raises(GuestError, match=r'mkdir cwd \("/etc/passwd"\) set in config.json failed'):
        guest.create("c", spec)


def test_a_program_only_root_may_execute_is_not_executable_for_a_user(guest: Guest, rootfs: Path) -> None:
    (rootfs / "bin/secret").write_text("#!/bin/sh\necho secret\n")
    (rootfs / "bin/secret").chmod(0o700)
    spec = make_spec(rootfs, "/bin/secret")
    assert guest.run(spec)[1] == "secret\n"
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    with pytest.raises(ExecError, match='exec: "/bin/secret": permission denied') as caught:
        guest.create("c", spec)
    assert caught.value.code == "exec-not-executable"


def test_a_relative_program_is_looked_up_from_the_working_directory(guest: Guest, rootfs: Path) -> None:
    (rootfs / "home/run").write_text("#!/bin/sh\necho ran\n")
    (rootfs / "home/run").chmod(0o755)
    spec = make_spec(rootfs, "./run")
    spec["process"]["cwd"] = "/home"
    assert guest.run(spec)[1] == "ran\n"
