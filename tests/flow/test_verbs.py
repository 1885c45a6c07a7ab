"""The verbs as programs, through the shim and the agent: life of a container, exec, signals, clean-up."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time

import pytest

from bufferzone import state
from bufferzone.cli.oci.spec import default_spec
from bufferzone.client.connection import Client
from bufferzone.wire import task
from flow.cli import DEADLINE_S, Cli, needs_host, read

pytestmark = needs_host


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


def finish(process):
    """What the fake conmon printed, as a list of words."""
    out, _ = process.communicate(timeout=DEADLINE_S)
    return out.split()


def await_exit(bz, id):
    """Wait until the container's process ended, by asking its shim."""
    with Client.connect(str(bz.root / id)) as client:
        return client.call("Wait", task.WaitRequest(id=id), timeout_s=DEADLINE_S).exit_status


@pytest.mark.parametrize(("words", "status"), [((), 143), (("",), 143), (("HUP",), 129), (("KILL",), 137)])
def test_a_container_that_waits_for_its_start_is_ended_by_a_signal(bz, words, status):
    bz.create("one", bz.bundle("pause"))
    bz("kill", "one", *words)
    assert await_exit(bz, "one") == status
    assert bz.state("one")["status"] == "stopped"
    assert "cannot start a container that has stopped" in bz("start", "one", check=1).stderr
    bz("delete", "one")


def test_a_container_lives_from_create_to_delete_as_callers_expect(bz, tmp_path):
    pid_file = tmp_path / "pid"
    bz.create("one", bz.bundle("pause", annotations={"a": "b"}), "--pid-file", str(pid_file))
    created = bz.state("one")
    assert list(created)[:4] == ["ociVersion", "id", "pid", "status"]
    assert (created["status"], created["pid"]) == ("created", int(pid_file.read_text()))
    assert created["annotations"]["a"] == "b"
    assert created["annotations"]["bufferzone.wall"].startswith("none: ")
    bz("start", "one")
    assert bz.state("one")["status"] == "running"
    bz("kill", "one", "KILL")
    assert await_exit(bz, "one") == 137
    stopped = bz.state("one")
    assert (stopped["status"], stopped["pid"]) == ("stopped", 0)
    bz("delete", "one")
    assert bz.left() == []


def test_delete_removes_a_cgroup_that_the_shim_could_not_leave(bz, tmp_path):
    bz.create("one", bz.bundle("pause"))
    (tmp_path / "cgroup").mkdir()
    state.write_leftovers(str(bz.root / "one"), {"cgroups": [str(tmp_path / "cgroup")]})
    bz("delete", "--force", "one")
    assert not (tmp_path / "cgroup").exists()
    assert bz.left() == []


def test_the_pid_in_the_pid_file_is_reaped_with_the_exit_status(bz, tmp_path):
    pid_file = str(tmp_path / "pid")
    conmon = bz.conmon("create", "--bundle", str(bz.bundle("end", "42")), "--pid-file", pid_file, "one")
    assert conmon.stdout.readline() == "created 0\n"
    bz("start", "one")
    assert finish(conmon) == ["ended", "42"]


@pytest.fixture
def hurried(bz):
    """Shims that do not stay long for a caller that waits for them."""
    bz.odd_shim("from bufferzone.shim import task; task._KEPT_S = 0.1")
    return bz


def created_by_conmon(bz, pid_file, **changes):
    words = ("create", "--bundle", str(bz.bundle("end", "3", **changes)), "--pid-file", str(pid_file), "one")
    conmon = bz.conmon(*words, alone=True)
    assert conmon.stdout.readline() == "created 0\n"
    bz("start", "one")
    assert conmon.stdout.readline() == "ended 3\n"
    return conmon


def test_a_caller_that_waits_for_all_its_children_is_not_kept_by_the_shim(hurried, tmp_path):
    conmon = created_by_conmon(hurried, tmp_path / "pid")
    assert finish(conmon) == ["alone"]
    assert not state.owner_alive(str(hurried.root / "one"))
    assert hurried.state("one")["status"] == "stopped"
    assert hurried("list", "--quiet").stdout == "one\n"
    assert "container not running" in hurried("kill", "one", check=1).stderr
    assert "cannot exec in a stopped container" in hurried("exec", "one", "true", check=255).stderr
    hurried("delete", "one")
    assert hurried.left() == []


def test_a_shim_stays_for_the_hooks_after_the_end(hurried, tmp_path):
    script = tmp_path / "hook"
    script.write_text(f"#!/bin/sh\nexec /bin/touch {tmp_path}/ran\n")
    script.chmod(0o755)
    conmon = created_by_conmon(hurried, tmp_path / "pid", hooks={"poststop": [{"path": str(script)}]})
    assert select.select([conmon.stdout], [], [], 1.0)[0] == []
    hurried("delete", "one")
    assert finish(conmon) == ["alone"]
    assert (tmp_path / "ran").exists()
    assert hurried.left() == []


def test_a_signal_to_that_pid_reaches_the_container(bz, tmp_path):
    pid_file = tmp_path / "pid"
    reader, writer = os.pipe()
    words = ("create", "--bundle", str(bz.bundle("greet")), "--pid-file", str(pid_file), "one")
    conmon = bz.conmon(*words, outputs=writer)
    os.close(writer)
    conmon.stdout.readline()
    bz("start", "one")
    assert read(reader) == b"up\n"
    os.kill(int(pid_file.read_text()), signal.SIGINT)
    assert finish(conmon) == ["ended", "130"]
    os.close(reader)


def test_killing_that_pid_kills_the_container(bz, tmp_path):
    pid_file = tmp_path / "pid"
    conmon = bz.conmon("create", "--bundle", str(bz.bundle("pause")), "--pid-file", str(pid_file), "one")
    conmon.stdout.readline()
    bz("start", "one")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert finish(conmon) == ["ended", "-9"]
    assert await_exit(bz, "one") == 137


def test_a_killed_shim_is_told_on_stderr_and_by_the_exit_status(bz, tmp_path):
    with open(tmp_path / "errors", "w") as errors:
        words = ("--bundle", str(bz.bundle("pause")), "--pid-file", str(tmp_path / "pid"), "one")
        conmon = bz.conmon("create", *words, stderr=errors)
    conmon.stdout.readline()
    bz("start", "one")
    os.kill(state.owner_pid(str(bz.root / "one")), signal.SIGKILL)
    assert finish(conmon) == ["ended", "137"]
    assert (tmp_path / "errors").read_text() == "bufferzone: one: the shim that ran its VM was killed\n"
    assert bz.state("one")["status"] == "stopped"
    assert "container not running" in bz("kill", "one", check=1).stderr
    bz("kill", "--all", "one", "KILL")
    assert "has stopped" in bz("start", "one", check=1).stderr


def test_delete_of_a_container_whose_shim_was_killed_runs_the_clean_up_and_removes_it(bz):
    bz.create("one", bz.bundle("pause"))
    agent = os.pidfd_open(bz.helper("one"))
    os.kill(state.owner_pid(str(bz.root / "one")), signal.SIGKILL)
    bz("delete", "one")
    assert bz.left() == []
    assert select.select([agent], [], [], DEADLINE_S)[0]
    os.close(agent)


def test_a_copy_into_a_tmpfs_of_the_container_is_refused_where_the_host_looks(bz, tmp_path):
    mounts = [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]
    bundle = bz.bundle("pause", mounts=[*default_spec(rootless=False)["mounts"], *mounts])
    bz.create("one", bundle, "--pid-file", str(tmp_path / "pid"))
    root = f"/proc/{(tmp_path / 'pid').read_text()}/root"
    with pytest.raises(OSError, match="Read-only file system"):
        os.mkdir(f"{root}/tmp/new")
    os.mkdir(f"{root}/etc/new")
    assert "new" in os.listdir(bundle / "rootfs/etc")


def test_delete_refuses_a_running_container_unless_forced(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    refused = bz("delete", "one", check=1).stderr
    assert refused == "bufferzone: cannot delete container one that is not stopped: running\n"
    bz("delete", "--force", "one")
    assert bz.left() == []


def test_delete_of_a_created_container_needs_no_force(bz):
    bz.create("one", bz.bundle("pause"))
    bz("delete", "one")
    assert bz.left() == []


def test_unknown_containers_do_not_exist(bz):
    for words in (
        ("state", "x"),
        ("kill", "x", "9"),
        ("delete", "x"),
        ("start", "x"),
        ("pause", "x"),
        ("ps", "x"),
    ):
        assert bz(*words, check=1).stderr == 'bufferzone: container "x" does not exist\n'
    assert bz("delete", "--force", "x").stderr == ""


def test_a_taken_id_is_refused_and_the_container_left_alone(bz):
    bundle = bz.bundle("pause")
    bz.create("one", bundle)
    assert bz.create("one", bundle, check=1) == "bufferzone: container with id exists: one\n"
    assert bz.state("one")["status"] == "created"


def test_a_second_start_is_refused(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    assert "cannot start an already running container" in bz("start", "one", check=1).stderr


def test_run_passes_stdio_and_exit_status_and_deletes(bz):
    done = bz("run", "--bundle", str(bz.bundle("cat")), "one", input="through\n")
    assert (done.stdout, done.stderr) == ("through\n", "")
    assert bz("run", "--bundle", str(bz.bundle("end", "7")), "one", check=7).stdout == ""
    assert bz.left() == []


def test_run_can_keep_or_detach(bz, tmp_path):
    bz("run", "--keep", "--bundle", str(bz.bundle("end", "0")), "one")
    assert bz.state("one")["status"] == "stopped"
    with open(tmp_path / "out", "w") as out:
        words = ("run", "-d", "--pid-file", str(tmp_path / "pid"), "--bundle", str(bz.bundle("pause")), "two")
        subprocess.run(bz.command(*words), stdin=subprocess.DEVNULL, stdout=out, check=True, env={})
    assert bz.state("two") == {
        **bz.state("two"),
        "status": "running",
        "pid": int((tmp_path / "pid").read_text()),
    }


def test_run_of_a_missing_program_ends_with_127_and_leaves_nothing(bz):
    done = bz("run", "--bundle", str(bz.bundle("missing")), "one", check=127)
    assert "executable file not found in $PATH" in done.stderr
    assert bz.left() == []


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_reader_of_the_foreground_sees_the_end_when_the_last_writer_has_closed(bz, verb):
    script = "echo out; exec > /dev/null; exec sleep 1000"
    if verb == "run":
        words = ("run", "--bundle", str(bz.bundle("sh", "-c", script)), "one")
    else:
        bz.create("one", bz.bundle("pause"))
        bz("start", "one")
        words = ("exec", "one", "sh", "-c", script)
    with subprocess.Popen(
        bz.command(*words), env={}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as ours:
        assert read(ours.stdout.fileno()) == b"out\n"
        assert select.select([ours.stdout], [], [], DEADLINE_S)[0]
        assert ours.stdout.read() == b""
        assert ours.poll() is None
        ours.send_signal(signal.SIGTERM if verb == "exec" else signal.SIGKILL)
        ours.wait(DEADLINE_S)


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_readers_of_a_detached_process_see_the_end_when_the_last_writer_has_closed(bz, verb):
    """One pipe for both outputs, as of a shell's `2>&1 |`."""
    script = "echo out; exec >/dev/null 2>&1; exec sleep 1000"
    if verb == "run":
        words = ("run", "--detach", "--bundle", str(bz.bundle("sh", "-c", script)), "one")
    else:
        bz.create("one", bz.bundle("pause"))
        bz("start", "one")
        words = ("exec", "--detach", "one", "sh", "-c", script)
    reader, writer = os.pipe()
    quiet = {"stdin": subprocess.DEVNULL, "stdout": writer, "stderr": writer}
    subprocess.run(bz.command(*words), env={}, check=True, timeout=DEADLINE_S, **quiet)
    os.close(writer)
    assert read(reader) == b"out\n"
    assert read(reader) == b""
    os.close(reader)
    assert bz.state("one")["status"] == "running"


def test_exec_delivers_what_descendants_write_after_its_end_and_a_detached_one_does_not_wait(bz, tmp_path):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    script = "(sleep 0.5; echo late; exec >/dev/null 2>&1; sleep 1000) & echo now; exit 4"
    assert bz("exec", "one", "sh", "-c", script, check=4).stdout == "now\nlate\n"
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    words = (
        "exec",
        "--detach",
        "--pid-file",
        str(tmp_path / "pid"),
        "one",
        "sh",
        "-c",
        "sleep 1000 & exit 4",
    )
    subprocess.run(bz.command(*words), check=True, timeout=DEADLINE_S, **quiet)
    try:
        pidfd = os.pidfd_open(int((tmp_path / "pid").read_text()))
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], DEADLINE_S)[0]
    os.close(pidfd)


def test_exec_passes_stdio_and_exit_status_and_waits_for_nothing_more(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    assert bz("exec", "one", "cat", input="in\n").stdout == "in\n"
    assert bz("exec", "one", "end", "9", check=9).stderr == ""
    assert bz("exec", "one", "end", "9", check=9).stderr == ""  # the first was freed with its verb


def test_exec_works_in_a_container_that_was_created_and_not_started(bz):
    bz.create("one", bz.bundle("pause"))
    assert bz("exec", "one", "cat", input="in\n").stdout == "in\n"
    assert bz("exec", "one", "end", "9", check=9).stderr == ""
    assert "executable file not found in $PATH" in bz("exec", "one", "missing", check=127).stderr
    assert bz.state("one")["status"] == "created"
    bz("start", "one")
    assert bz.state("one")["status"] == "running"


def test_a_created_container_goes_with_its_execs(bz):
    bz.create("one", bz.bundle("pause"))
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run(bz.command("exec", "--detach", "one", "pause"), check=True, timeout=DEADLINE_S, **quiet)
    bz("delete", "one")
    assert bz.left() == []


def test_exec_of_a_missing_program_ends_with_127_and_other_failures_with_255(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    assert "executable file not found in $PATH" in bz("exec", "one", "missing", check=127).stderr
    assert "needs a command" in bz("exec", "one", check=255).stderr


def test_a_detached_exec_has_a_pid_that_is_reaped_with_its_status(bz, tmp_path):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    process = tmp_path / "process.json"
    process.write_text(json.dumps({"args": ["/bin/end", "5"], "cwd": "/"}))
    words = ("exec", "--detach", "--pid-file", str(tmp_path / "pid"), "--process", str(process), "one")
    conmon = bz.conmon(*words, stdin=subprocess.DEVNULL)
    assert finish(conmon) == ["created", "0", "ended", "5"]


def test_a_detached_exec_that_fails_leaves_no_pid_file(bz, tmp_path):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    process = tmp_path / "process.json"
    process.write_text(json.dumps({"args": ["missing"], "cwd": "/"}))
    words = ("exec", "-d", "--pid-file", str(tmp_path / "pid"), "-p", str(process), "one")
    assert "executable file not found" in bz(*words, check=127).stderr
    assert not (tmp_path / "pid").exists()


def test_exec_flags_are_laid_over_the_containers_process_as_runc_does(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    flags = (
        "--user",
        "5:6",
        "-g",
        "7",
        "--cwd",
        "/tmp",
        "-e",
        "A=1",
        "--cap",
        "CAP_CHOWN",
        "--no-new-privs=false",
    )
    text = "id; pwd; echo $A; grep -e CapBnd -e CapAmb -e NoNewPrivs /proc/self/status"
    said = bz("exec", *flags, "one", "sh", "-c", text).stdout.split("\n")
    assert said[:3] == ["uid=5 gid=6 groups=7", "/tmp", "1"]
    status = dict(line.split(":\t") for line in said[3:6])
    assert int(status["CapBnd"], 16) & 1  # CAP_CHOWN
    assert (int(status["CapAmb"], 16), status["NoNewPrivs"]) == (0, "0")


def test_signals_to_an_attached_run_reach_the_container(bz):
    command = bz.command("run", "--bundle", str(bz.bundle("greet")), "one")
    reader, writer = os.pipe()
    run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, env={})
    os.close(writer)
    assert read(reader) == b"up\n"
    run.send_signal(signal.SIGUSR1)
    assert read(reader) == b"usr1\n"
    run.send_signal(signal.SIGINT)
    assert run.wait(DEADLINE_S) == 130
    os.close(reader)
    assert bz.left() == []


def test_pause_and_resume_freeze_the_container(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    bz("pause", "one")
    assert bz.state("one")["status"] == "paused"
    assert "cannot exec in a paused container" in bz("exec", "one", "ls", check=255).stderr
    bz("resume", "one")
    assert bz.state("one")["status"] == "running"
    bz("exec", "one", "end", "0")


def test_exec_with_ignore_paused_runs_once_the_container_is_resumed(bz):
    bz.create("one", bz.bundle("pause"))
    bz("start", "one")
    bz("pause", "one")
    words = bz.command("exec", "--ignore-paused", "one", "end", "9")
    waiting = subprocess.Popen(words, env={}, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    killed = subprocess.Popen(words, env={}, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _await_frozen(bz, 3)
    killed.kill()
    killed.wait(DEADLINE_S)
    _await_frozen(bz, 2)
    assert waiting.poll() is None
    assert bz.state("one")["status"] == "paused"
    bz("resume", "one")
    assert (waiting.wait(DEADLINE_S), waiting.stderr.read()) == (9, b"")
    waiting.stderr.close()
    bz("exec", "one", "end", "0")


def _await_frozen(bz, count):
    """Wait until the container, which is paused, has that many processes, all of them frozen."""
    end = time.monotonic() + DEADLINE_S
    while True:
        answer = bz("ps", "--format", "json", "one").stdout
        found = len(json.loads(answer))
        if found == count:
            return
        assert time.monotonic() < end, answer
        select.select([], [], [], 0.02)


def test_environment_and_descriptors_of_the_caller_do_not_reach_the_shim(bz):
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    command = bz.command("create", "--bundle", str(bz.bundle("pause")), "one")
    secret = {"TTRPC_ADDRESS": "/x", "SECRET": "y", "XDG_RUNTIME_DIR": "/run/user/0"}
    null = subprocess.DEVNULL
    subprocess.run(
        command, env=secret, pass_fds=[writer], check=True, timeout=DEADLINE_S, stdin=null, stdout=null
    )
    pid = state.owner_pid(str(bz.root / "one"))
    with open(f"/proc/{pid}/environ") as file:
        names = sorted(entry.partition("=")[0] for entry in file.read().split("\0") if entry)
    assert names == ["LANG", "PATH", "XDG_RUNTIME_DIR"]
    os.close(writer)
    inode = f"pipe:[{os.fstat(reader).st_ino}]"
    shown = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert inode not in shown
    os.close(reader)


def test_what_comes_while_create_runs_is_told_so(bz):
    directory = state.create(str(bz.root), "one")
    facts = {"bundle": "/b", "rootfs": "/b/r", "created": "2026-01-01T00:00:00Z", "owner": "root"}
    state.write_state(directory, id="one", status=state.CREATING, pid=0, annotations={}, **facts)
    assert bz.state("one")["status"] == "creating"
    for words in (("start", "one"), ("kill", "one", "TERM"), ("kill", "one", "0"), ("pause", "one")):
        line = f"bufferzone: cannot {words[0]} container one: it is still being created\n"
        assert bz(*words, check=1).stderr == line
    assert "still being created" in bz("exec", "one", "ls", check=255).stderr
    state.remove(directory)


def test_a_start_waits_for_a_create_that_is_under_way(bz, tmp_path):
    """`state` shows the container from the beginning, and there are callers that start what they see."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wait = {"path": "/bin/sh", "args": ["sh", "-c", f"echo here >{gate}; read line <{gate}"]}
    creating = bz.start("create", "--bundle", str(bz.bundle("pause", hooks={"prestart": [wait]})), "one")
    with open(gate) as waiting:
        assert waiting.readline() == "here\n"
    assert bz.state("one")["status"] == "creating"
    starting = bz.start("--debug", "start", "one")
    assert "start begins" in starting.stderr.readline()
    gate.write_text("go\n")
    assert (starting.wait(DEADLINE_S), creating.wait(DEADLINE_S)) == (0, 0)
    assert bz.state("one")["status"] == "running"
    bz("kill", "one", "KILL")


def test_a_start_ends_with_the_create_that_it_waits_for(bz, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fail = {"path": "/bin/sh", "args": ["sh", "-c", f"echo here >{gate}; read line <{gate}; exit 1"]}
    creating = bz.start("create", "--bundle", str(bz.bundle("pause", hooks={"prestart": [fail]})), "one")
    with open(gate) as waiting:
        assert waiting.readline() == "here\n"
    starting = bz.start("--debug", "start", "one")
    assert "start begins" in starting.stderr.readline()
    gate.write_text("go\n")
    assert (starting.wait(DEADLINE_S), creating.wait(DEADLINE_S)) == (1, 1)
    told = starting.stderr.read()
    assert 'container "one" does not exist' in told or "a container that has stopped" in told
