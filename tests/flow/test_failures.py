"""What ends, hangs or lies: the VM killed in each phase, agents that do not do what they must.

All of it through the real shim and verbs, with the VMM that needs no VM; odd agents take the place of ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import select
import signal
import socket
import subprocess

import pytest

from bufferzone import counters, state
from bufferzone.vmm.host import cgroup
from flow.cli import DEADLINE_S, SETTINGS, Cli, needs_host, read, vm_cgroups
from vm.verbs import await_true
from vm.warm import open_files

pytestmark = needs_host

_SILENT = "import signal; signal.pause()"
_GARBAGE = "import os, signal; os.write(agent_fd, b'\\xff' * 4096); signal.pause()"
_EXITS = "sys.exit(3)"


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def hasty(tmp_path):
    """A VM may take a second to boot."""
    cli = Cli(tmp_path, f"{SETTINGS}\nboot_timeout_s = 1")
    yield cli
    cli.close()


def kill_the_vm(bz, id="one"):
    """Kill the agent and with it all that it has started, and wait until it is gone."""
    agent = os.pidfd_open(bz.helper(id))
    signal.pidfd_send_signal(agent, signal.SIGKILL)
    assert select.select([agent], [], [], DEADLINE_S)[0]
    os.close(agent)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (_GARBAGE, "agent"),
        (_EXITS, "failed (the host without a VM exit status 3)"),
    ],
)
def test_an_agent_that_breaks_off_fails_the_create_in_one_line(bz, program, words):
    bz.odd_agent(program)
    said = bz.create("one", bz.bundle("pause"), check=1)
    assert words in said
    assert said.count("\n") == 1
    assert bz.left() == []


def test_an_agent_that_never_answers_fails_the_create_when_its_time_is_up(hasty):
    hasty.odd_agent(_SILENT)
    said = hasty.create("one", hasty.bundle("pause"), check=1)
    assert "did not answer within 1 s" in said
    assert hasty.left() == []


def counted():
    """Cold starts, and failures of every cause."""
    series = counters.read(state.lease_root())
    starts = {(kind, phase): number for kind, phase, number, _, _ in counters.starts(series)}
    return starts.get(("cold", counters.WHOLE), 0), sum(number for _, number in counters.failures(series))


def test_a_vm_killed_after_create_takes_the_container_with_it(bz):
    before = counted()
    bz.create("one", bz.bundle("pause"))
    kill_the_vm(bz)
    refused = bz("start", "one", check=1).stderr
    assert refused.count("\n") == 1
    assert bz.state("one")["status"] == "stopped"
    bz("delete", "one")
    assert bz.left() == []
    starts, failures = counted()
    assert (starts > before[0], failures > before[1]) == (True, True)  # others may run beside us


def test_a_vm_killed_while_the_container_runs_is_told_on_stderr_and_by_137(bz, tmp_path):
    pid_file = str(tmp_path / "pid")
    with open(tmp_path / "errors", "w") as errors:
        words = ("create", "--bundle", str(bz.bundle("pause")), "--pid-file", pid_file, "one")
        conmon = bz.conmon(*words, stderr=errors)
    conmon.stdout.readline()
    bz("start", "one")
    kill_the_vm(bz)
    assert conmon.communicate(timeout=DEADLINE_S)[0] == "ended 137\n"
    assert "the virtual machine was killed (SIGKILL)" in (tmp_path / "errors").read_text()
    assert bz.state("one")["status"] == "stopped"


def test_a_vm_killed_during_an_exec_ends_the_exec_with_137(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    reader, writer = os.pipe()
    command = bz.command("exec", "one", "sh", "-c", "echo up; exec sleep 1000")
    exec_ = subprocess.Popen(command, env={}, stdin=subprocess.DEVNULL, stdout=writer)
    os.close(writer)
    assert read(reader) == b"up\n"
    kill_the_vm(bz)
    assert exec_.wait(DEADLINE_S) == 137
    os.close(reader)


@pytest.mark.parametrize("hook", ["prestart", "createRuntime"])
def test_a_vm_killed_in_the_middle_of_create_fails_it_in_one_line(bz, hook):
    agent = f"grep -A2 processes {bz.root}/one/leftovers.json | tail -1 | tr -dc 0-9"
    kill = {"path": "/bin/sh", "args": ["sh", "-c", f"kill -9 $({agent})"], "env": ["PATH=/usr/bin:/bin"]}
    said = bz.create("one", bz.bundle("pause", hooks={hook: [kill]}), check=1)
    assert "the virtual machine was killed (SIGKILL)" in said
    assert said.count("\n") == 1
    assert bz.left() == []


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_after_a_create_that_a_hook_fails_the_poststop_hooks_run(bz, tmp_path, stage):
    """runtime-spec 1.2.0 runtime.md "Lifecycle", steps 5 to 14."""
    log = tmp_path / "log"
    tell = {"path": "/bin/sh", "args": ["sh", "-c", f'grep -o \'"status":"[a-z]*"\' >>{log}; pwd >>{log}']}
    hooks = {stage: [{"path": "/bin/false"}], "poststop": [{"path": "/bin/false"}, tell]}
    bundle = bz.bundle("pause", hooks=hooks)
    assert f"{stage} hook 0 (/bin/false) failed with status 1" in bz.create("one", bundle, check=1)
    assert log.read_text() == f'"status":"stopped"\n{bundle}\n'
    assert bz.left() == []


def test_a_shim_killed_while_the_container_runs_takes_the_vm_with_it(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    agent = os.pidfd_open(bz.helper("one"))
    os.kill(state.owner_pid(str(bz.root / "one")), signal.SIGKILL)
    assert select.select([agent], [], [], DEADLINE_S)[0]
    os.close(agent)
    assert bz.state("one")["status"] == "stopped"
    bz("delete", "one")
    assert bz.left() == []


def test_what_a_killed_shim_left_of_its_cgroup_goes_with_the_next_start(bz):
    bz.create("one", bz.bundle("pause"))
    shim = state.owner_pid(str(bz.root / "one"))
    (path,) = vm_cgroups(shim)
    ends = [os.pidfd_open(pid) for pid in (shim, bz.helper("one"))]
    os.kill(shim, signal.SIGKILL)
    for end in ends:
        assert select.select([end], [], [], DEADLINE_S)[0]
        os.close(end)
    bz("delete", "one")
    bz.create("two", bz.bundle("pause", name="second"))
    assert not os.path.exists(path)
    bz("delete", "two")


def test_the_cgroup_of_a_shim_that_is_not_seen_from_here_stays(bz):
    foreign = f"{cgroup.unified()}/bufferzone-host-4194304-0"  # no pid is as high: another PID namespace's
    os.mkdir(foreign)
    try:
        lock = os.open(foreign, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        bz.create("one", bz.bundle("pause"))
        assert os.path.isdir(foreign)
        os.close(lock)
        bz.create("two", bz.bundle("pause", name="second"))
        assert not os.path.exists(foreign)
    finally:
        if os.path.isdir(foreign):
            os.rmdir(foreign)


def test_a_container_that_ends_leaves_no_cgroup_and_no_process(bz):
    bz.create("one", bz.bundle("pause"))
    shim, agent = state.owner_pid(str(bz.root / "one")), bz.helper("one")
    bz("delete", "--force", "one")
    assert bz.left() == []
    assert vm_cgroups(shim) == []
    assert not os.path.exists(f"/proc/{agent}")


def test_the_state_says_that_it_is_no_wall(bz):
    bz.create("one", bz.bundle("pause"))
    facts = bz.state("one")["annotations"]
    assert facts["bufferzone.wall"] == "none: there is no VM, the container runs on the host's kernel"
    assert facts["bufferzone.vmm"].startswith("host ")
    assert "wall: none" in (bz.root / "one" / "shim.log").read_text()


def test_no_annotation_chooses_the_host_in_place_of_a_vm(bz):
    bundle = bz.bundle("pause", annotations={"bufferzone.vmm": "host"})
    assert "annotations.bufferzone.vmm: not allowed on this host" in bz.create("one", bundle, check=1)
    assert bz.left() == []


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({"bufferzone.kvm": "require"}, "makes no use of KVM, which is required"),
        ({"bufferzone.egress": "none"}, "has no network for a policy to hold"),
    ],
)
def test_what_the_host_cannot_do_is_refused_before_anything_runs(bz, annotations, words):
    said = bz.create("one", bz.bundle("pause", annotations=annotations), check=1)
    assert words in said
    assert said.count("\n") == 1
    assert bz.left() == []


def test_a_state_that_cannot_be_written_fails_the_start_in_one_line(bz):
    bz.create("one", bz.bundle("pause"))
    shim = state.owner_pid(str(bz.root / "one"))
    before = resource.prlimit(shim, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    refused = bz("start", "one", check=1).stderr
    assert "cannot write" in refused
    assert refused.count("\n") == 1
    resource.prlimit(shim, resource.RLIMIT_FSIZE, before)
    bz("delete", "--force", "one")
    assert bz.left() == []


def test_a_container_goes_on_after_a_checkpoint_that_cannot_be_made(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    place = bz.base / "saved"
    refused = bz("checkpoint", "--image-path", str(place), "one", check=1).stderr
    assert "cannot checkpoint container one: its root file system is shared with virtiofs" in refused
    assert refused.count("\n") == 1
    assert bz.state("one")["status"] == "running"
    assert bz("exec", "one", "echo", "on").stdout == "on\n"
    assert not place.exists() or os.listdir(place) == []


def test_a_restore_of_what_is_no_checkpoint_leaves_nothing(bz):
    (bz.base / "saved").mkdir()
    words = ("restore", "--image-path", str(bz.base / "saved"), "--bundle", str(bz.bundle("pause")), "one")
    refused = bz(*words, check=1).stderr
    assert "no checkpoint in" in refused
    assert bz.left() == []


def few_files(bz, most):
    """From now on a shim may have so many files open, those of its start included."""
    bz.odd_shim(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))")
    return bz.bundle("pause", process={"args": ["pause"], "rlimits": []})


def detached_exec(bz, pid_file):
    """The error of an exec that stays, empty for none."""
    with open(bz.base / "exec.err", "w+") as errors:
        subprocess.run(
            bz.command("exec", "--detach", "--pid-file", str(pid_file), "one", "sleep", "1000"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            timeout=DEADLINE_S,
        )
        errors.seek(0)
        return errors.read()


def test_a_shim_that_may_open_no_more_files_says_whose_limit_it_is_and_goes_on(bz):
    bz.create("one", few_files(bz, 64))
    bz("start", "one")
    pid_files = [bz.base / f"pid{number}" for number in range(64)]
    said = next(filter(None, (detached_exec(bz, path) for path in pid_files)))
    where = "ulimit -Hn, or LimitNOFILE= of the service that starts containers"
    assert said.endswith(f": Too many open files (hint: the shim may have 64 files open; {where})\n")
    assert said.count("\n") == 1
    assert bz.state("one")["status"] == "running"
    last = [int(path.read_text()) for path in pid_files if path.exists()][-1]
    stand_in = os.pidfd_open(last)
    signal.pidfd_send_signal(stand_in, signal.SIGKILL)
    assert select.select([stand_in], [], [], DEADLINE_S)[0]
    os.close(stand_in)
    await_true(
        lambda: bz("exec", "one", "true", check=None).returncode == 0, "an exec with the files of another"
    )
    bz("delete", "--force", "one")
    assert bz.left() == []


@pytest.mark.parametrize("most", range(18, 42, 2))
def test_wherever_the_files_run_out_it_is_one_line_and_nothing_is_left(bz, most):
    said = bz.create("one", few_files(bz, most), check=None)
    if not said:
        said = bz("start", "one", check=None).stderr
    if not said:
        said = detached_exec(bz, bz.base / "pid") or detached_exec(bz, bz.base / "pid")
    assert re.fullmatch(r"bufferzone: [^\[\]]*(t|T)oo many open files( \(hint: [^\n]*\))?\n", said), said
    bz("delete", "--force", "one", check=None)
    assert not [name for name in bz.left() if not name.startswith("@net-")]


#: from the end of its service on it waits until {go} is there
_SLOW_TO_LEAVE = """
import os, time
from bufferzone.shim import callers, daemon, task

def run_sandbox(*words, run_sandbox=daemon.run_sandbox, **more):
    run_sandbox(*words, **more)
    while not os.path.exists({go!r}):
        time.sleep(0.01)

daemon.run_sandbox = run_sandbox
callers.Callers.wait_for_us = lambda self: True
task._KEPT_S = 0
"""


@pytest.mark.parametrize("flags", [(), ("--force",)])
def test_a_shim_that_is_on_its_way_out_is_waited_for_by_delete(bz, flags):
    go = bz.base / "go"
    bz.odd_shim(_SLOW_TO_LEAVE.format(go=str(go)))
    bz.create("one", bz.bundle("end", "0"))
    bz("start", "one")

    def on_its_way() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(bz.root / "one" / "shim.sock")) == errno.ECONNREFUSED

    await_true(on_its_way, "a shim that listens no more")
    assert state.owner_alive(str(bz.root / "one"))
    delete = bz.start("delete", *flags, "one")
    await_true(lambda: "anon_inode:[pidfd]" in open_files(delete.pid), "a delete that waits for it")
    go.touch()
    assert delete.wait(DEADLINE_S) == 0
    assert not (bz.root / "one").exists()
    assert bz.left() == []
