"""A child that was forked ahead of time becomes the next process, just as one that is forked for it does."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.errors import ExecError
from unit.guest_harness import TIMEOUT_S, Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        guest.call("Prefork")
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return make_rootfs(tmp_path / "rootfs")


def children(guest: Guest) -> set[int]:
    """Processes whose parent is the agent."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if fields[0] != "Z" and int(fields[1]) == guest.process.pid:
            found.add(int(name))
    return found


def waiting(guest: Guest) -> int:
    """The one that waits."""
    (pid,) = children(guest)
    return pid


def await_children(guest: Guest, wanted: set[int]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while (found := children(guest)) != wanted:
        assert time.monotonic() < end, (found, wanted)


def without_pid_namespace(spec: dict) -> dict:
    spec["linux"]["namespaces"] = [row for row in spec["linux"]["namespaces"] if row["type"] != "pid"]
    return spec


def test_the_child_that_waits_becomes_the_process(guest: Guest, rootfs: Path) -> None:
    child = waiting(guest)
    assert guest.create("c", without_pid_namespace(make_spec(rootfs, "cat"))) == child
    guest.start("c")
    guest.write(b"hello\n", "c")
    assert guest.read("c") == b"hello\n"


def test_in_a_new_pid_namespace_it_lends_its_memory_and_ends(guest: Guest, rootfs: Path) -> None:
    lender = waiting(guest)
    init = guest.create("c", make_spec(rootfs, "sh", "-c", "echo $$ $PPID; exec cat"))
    assert init != lender
    assert {init, lender} <= children(guest)
    guest.start("c")
    assert guest.read_until(b"\n", "c") == b"1 0\n"
    end = time.monotonic() + TIMEOUT_S
    while lender in children(guest):
        assert time.monotonic() < end


def test_an_exec_gets_what_it_would_get_of_a_fork(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    # Not SigQ: what is queued is counted for every process of the user on this host.
    status = "grep -E '^(Cap|Sig[PBIC]|NoNew|Seccomp:)' /proc/self/status"
    script = f"ls /proc/self/fd; ulimit -n; umask; pwd; {status}"
    seen = []
    for number in range(2):
        if number:
            guest.call("Prefork")
        limits = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}]
        guest.exec("c", f"e{number}", "sh", "-c", script, rlimits=limits)
        seen.append(guest.read_all("c", f"e{number}"))
        assert guest.wait("c", f"e{number}").exit_status == 0
        guest.delete("c", f"e{number}")
    assert seen[0] == seen[1]
    assert b"\n77\n0022\n/\n" in seen[0]


def test_a_program_that_is_not_there_is_told_as_ever(guest: Guest, rootfs: Path) -> None:
    guest.create("c", make_spec(rootfs, "cat"))
    guest.start("c")
    guest.call("Prefork")
    with pytest.raises(ExecError, match="executable file not found"):
        guest.exec("c", "e", "nothing")


def test_a_child_that_was_killed_while_it_waited_is_replaced(guest: Guest, rootfs: Path) -> None:
    child = os.pidfd_open(waiting(guest))
    signal.pidfd_send_signal(child, signal.SIGKILL)
    assert select.select([child], [], [], TIMEOUT_S)[0]  # on a busy machine it is there for a while
    os.close(child)
    assert guest.run(make_spec(rootfs, "echo", "well")) == (0, "well\n", "")


def test_a_spec_too_large_for_a_packet_is_forked(guest: Guest, rootfs: Path) -> None:
    child = waiting(guest)
    spec = make_spec(rootfs, "sh", "-c", "echo ${#LONG}")
    spec["process"]["env"] = ["PATH=/bin", "LONG=" + "x" * 120_000]
    assert guest.run(spec) == (0, "120000\n", "")
    assert child in children(guest)


def test_no_child_outlives_the_agent(rootfs: Path) -> None:
    with running_guest() as guest:
        guest.call("Prefork")
        child = os.pidfd_open(waiting(guest))
    assert select.select([child], [], [], TIMEOUT_S)[0]
    os.close(child)
