"""What helpers hold is looked at before a program runs: one that holds too much is the end of the sandbox."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from bufferzone import allowlists, jail
from bufferzone.config import Settings
from bufferzone.errors import VmmError
from bufferzone.sandbox import selfaudit
from bufferzone.sandbox.facts import Facts
from bufferzone.sandbox.sandbox import HostSide, Sandbox, Start
from bufferzone.vm.group import Group

BUSYBOX = "/bin/busybox"
PTRACE_SEIZE = 0x4206
UID = jail.UID_BASE + 2 * jail.UID_SLOTS + 7
pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not Path(BUSYBOX).exists(), reason="needs root, busybox")


@pytest.fixture
def started() -> Iterator[object]:
    """Start a program that waits in a jail of this kind; returns its pid."""
    with ExitStack() as stack:

        def start(**changes: object) -> int:
            log = os.open("/dev/null", os.O_WRONLY)
            stack.callback(os.close, log)
            values: dict[str, object] = {
                "name": "busybox",
                "uid": UID,
                "gid": UID,
                "log_fd": log,
                "calls": allowlists.VMM_TCG,
                "binds": (jail.JailBind(source=BUSYBOX, target=BUSYBOX),),
                "devices": ("null", "urandom"),
            }
            confined = jail.Jail(**values | changes)  # type: ignore[arg-type]
            return stack.enter_context(jail.start([BUSYBOX, "sleep", "1000"], confined)).pid

        yield start


def test_a_helper_that_holds_what_its_jail_says_is_let_through_without_a_word(started):
    said: list[str] = []
    selfaudit.check([("vmm", started())], selfaudit.REFUSE, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capabilities": ("CAP_NET_BIND_SERVICE",)}, "it holds CAP_NET_BIND_SERVICE, over the host"),
        ({"namespaces": ("ipc", "uts", "pid")}, "its net namespace is the host's"),
        ({"uid": 0, "gid": 0}, "it runs as uid 0"),
    ],
)
def test_a_helper_that_holds_too_much_is_refused_or_told(started, changes, message):
    said: list[str] = []
    pid = started(**changes)
    with pytest.raises(VmmError) as caught:
        selfaudit.check([("vmm", pid)], selfaudit.REFUSE, said.append)
    assert (caught.value.code, caught.value.message) == (
        "wall-missing",
        f"a wall is missing: vmm {pid}: {message}",
    )
    assert said[0] == f"vmm {pid} holds too much: {message}"
    selfaudit.check([("vmm", pid)], selfaudit.WARN, said.append)


def test_a_descriptor_of_the_hosts_is_found(started):
    fd = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        pid = started(keep_fds=(fd,))
    finally:
        os.close(fd)
    with pytest.raises(VmmError, match=r"descriptor .* is '/etc', a directory that is not for it"):
        selfaudit.check([("vmm", pid)], selfaudit.REFUSE, print)


def test_a_helper_that_somebody_traces_is_told_and_not_refused(started):
    pid, said = started(), []
    reader, writer = os.pipe()
    tracer = os.fork()
    if tracer == 0:
        os.write(writer, b"%d" % ctypes.CDLL(None).ptrace(PTRACE_SEIZE, pid, None, None))
        signal.pause()
    try:
        assert os.read(reader, 8) == b"0"
        selfaudit.check([("vmm", pid)], selfaudit.REFUSE, said.append)
    finally:
        os.kill(tracer, signal.SIGKILL)
        os.waitpid(tracer, 0)
        os.close(reader)
        os.close(writer)
    assert said == [f"vmm {pid} holds too much: process {tracer} traces it"]


def test_a_helper_that_has_ended_is_for_others_to_tell():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    said: list[str] = []
    selfaudit.check([("vmm", child)], selfaudit.REFUSE, said.append)
    assert said == []


def _sandbox(pid: int, policy: str) -> tuple[Sandbox, list[str]]:
    told: list[str] = []
    vm = SimpleNamespace(
        vmm=SimpleNamespace(features=SimpleNamespace(wall=True)),
        helpers=(("vmm", pid),),
        agent=SimpleNamespace(lose=lambda reason: told.append(reason.code)),
        tree=None,
        kill=lambda: told.append("killed"),
    )
    network = SimpleNamespace(helpers=(), begin=lambda: told.append("begun"))
    host = HostSide(network=network, disk=None, cgroup=Group(""), left=None, timeline=None, log=print)  # type: ignore[arg-type]
    facts = Facts(
        start="", accelerator="", kvm="", image="", vcpus=1, memory_mib=1, rootfs="virtiofs", egress=()
    )
    start = Start(kind="cold", settings=Settings(self_audit=policy))
    return Sandbox("c", vm, host, start, facts), told  # type: ignore[arg-type]


def test_a_sandbox_whose_wall_is_missing_ends_before_its_program_runs(started):
    made, told = _sandbox(started(capabilities=("CAP_CHOWN",)), "refuse")
    made._look_at_helpers()
    with pytest.raises(VmmError, match="a wall is missing"):
        made.before_a_program()
    assert told == ["wall-missing", "killed"]


@pytest.mark.parametrize("policy", ["warn", "off"])
def test_a_sandbox_that_only_tells_goes_on(started, policy):
    made, told = _sandbox(started(capabilities=("CAP_CHOWN",)), policy)
    made._look_at_helpers()
    made.before_a_program()
    assert told == ["begun"]
