"""Host hooks: state on stdin, order, failure, time limit."""

import json
import os
import select
import signal
import stat
import subprocess

import pytest

from bufferzone.errors import HostError
from bufferzone.model import Hook
from bufferzone.sandbox.hooks import inheriting, run_all, run_hooks


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_hook_reads_the_state_and_sees_only_its_own_environment(tmp_path):
    out = tmp_path / "out"
    path = script(tmp_path / "hook", f'cat > "{out}"; echo "$NAME/$1/$HOME" >> "{out}"\n')
    run_hooks(
        "createRuntime",
        (Hook(path=path, args=("hook", "one"), env=("NAME=x",)),),
        json.dumps({"id": "c"}).encode(),
        "/",
    )
    assert out.read_text() == '{"id": "c"}x/one/\n'


def test_what_names_no_variable_is_left_out(tmp_path):
    out = tmp_path / "out"
    path = script(tmp_path / "hook", f'exec /usr/bin/env >"{out}"\n')
    run_hooks("prestart", (Hook(path=path, env=("=x", "bare", "", "A=b=c", "E=")),), b"{}", "/")
    assert set(out.read_text().split()) - {"PWD=/"} == {"A=b=c", "E="}


def test_it_runs_in_the_bundle_with_an_ordinary_umask_and_changes_neither_of_ours(tmp_path):
    out = tmp_path / "out"
    path = script(tmp_path / "hook", f'pwd >> "{out}"; umask >> "{out}"\n')
    before, old = os.getcwd(), os.umask(0o077)
    try:
        for directory in (tmp_path, tmp_path / "gone"):
            run_hooks("createRuntime", (Hook(path=path),), b"{}", str(directory))
    finally:
        left = os.umask(old)
    assert (os.getcwd(), left) == (before, 0o077)
    assert out.read_text() == f"{tmp_path}\n0022\n{before}\n0022\n"


def test_hooks_run_in_order_and_stop_at_the_first_that_fails(tmp_path):
    log = tmp_path / "log"
    good = Hook(path=script(tmp_path / "a", f'echo a >> "{log}"\n'))
    bad = Hook(path=script(tmp_path / "b", f'echo b >> "{log}"; echo broken >&2; exit 3\n'))
    with pytest.raises(HostError, match=r"prestart hook 1 .* failed with status 3: broken"):
        run_hooks("prestart", (good, bad, good), b"{}", "/")
    assert log.read_text() == "a\nb\n"


def test_one_without_an_environment_has_ours(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("OURS", "here")
    path = script(tmp_path / "hook", f'echo "$OURS" >> "{out}"; command -v ls >> "{out}"\n')
    run_hooks("createRuntime", (Hook(path=path),), b"{}", "/")
    assert out.read_text() == "here\n/usr/bin/ls\n"


def test_one_without_an_environment_can_have_that_of_whoever_asks(tmp_path):
    """OURS of a shim is what it keeps, and the runtime that a person calls has more."""
    command = ["sh", "-c", "echo; read line"]
    environment = {"PATH": "/bin", "THEIRS": "a=b"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as caller:
        try:
            caller.stdout.read(1)  # a program that has begun has its environment; execve(2) gives it late
            hooks = {"prestart": (Hook(path="/a"), Hook(path="/b", env=("X=1",))), "poststop": ()}
            found = inheriting(hooks, caller.pid)
        finally:
            caller.kill()
    taken, own = [hook.env for hook in found["prestart"]]
    assert {"PATH=/bin", "THEIRS=a=b"} <= set(taken)  # and PWD, which the shell adds
    assert own == ("X=1",)
    assert inheriting(hooks, caller.pid) == hooks  # it is gone: ours
    assert inheriting(hooks, os.getpid()) == hooks


def test_after_the_start_a_failure_is_a_warning_and_the_remaining_hooks_run(tmp_path):
    """runtime-spec 1.2.0 runtime.md "Lifecycle", steps of poststart and poststop: MUST log a warning."""
    log, warnings = tmp_path / "log", []
    bad = Hook(path=script(tmp_path / "b", "echo broken >&2; exit 3\n"))
    good = Hook(path=script(tmp_path / "a", f'echo a >> "{log}"\n'))
    run_all("poststart", (bad, Hook(path="/nonexistent"), good), b"{}", "/", warnings.append)
    assert log.read_text() == "a\n"
    assert [line.partition(")")[2] for line in warnings] == [
        " failed with status 3: broken",
        " cannot be started: No such file or directory",
    ]


def test_a_hook_that_does_not_exist_is_named():
    with pytest.raises(HostError, match=r"poststart hook 0 \(/nonexistent\) cannot be started: No such file"):
        run_hooks("poststart", (Hook(path="/nonexistent"),), b"{}", "/")


def test_a_hook_over_its_time_is_killed_with_its_group(tmp_path):
    pidfile = tmp_path / "pid"
    path = script(tmp_path / "slow", f'sleep 600 & echo $! > "{pidfile}"; wait\n')
    with pytest.raises(HostError, match="ran longer than 1 s"):
        run_hooks("createRuntime", (Hook(path=path, timeout_s=1),), b"{}", "/")
    child = int(pidfile.read_text())
    try:
        pidfd = os.pidfd_open(child)
    except ProcessLookupError:
        return  # it ended, and whoever adopted it has reaped it
    with open(pidfd, "rb", closefd=True):
        assert select.select([pidfd], [], [], 10)[0], "it lives"


def test_a_hook_that_writes_more_than_a_pipe_holds_is_not_held_up(tmp_path):
    path = script(tmp_path / "loud", "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 3\n")
    with pytest.raises(HostError, match=r"failed with status 3: x{4096}$"):
        run_hooks("createRuntime", (Hook(path=path),), b"{}", "/")


def test_a_hook_that_never_stops_writing_ends_in_its_time(tmp_path):
    path = script(tmp_path / "loud", "exec cat /dev/zero >&2\n")
    with pytest.raises(HostError, match="ran longer than 1 s"):
        run_hooks("createRuntime", (Hook(path=path, timeout_s=1),), b"{}", "/")


def test_a_process_that_a_hook_leaves_behind_with_its_stderr_holds_nobody_up(tmp_path):
    pidfile = tmp_path / "pid"
    path = script(tmp_path / "daemon", f'sleep 600 & echo $! > "{pidfile}"\n')
    try:
        run_hooks("createRuntime", (Hook(path=path, timeout_s=30),), b"{}", "/")
        assert os.path.exists(f"/proc/{pidfile.read_text().strip()}")  # and it was not killed for that
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_hooks_leave_no_descriptor(tmp_path):
    before = os.listdir("/proc/self/fd")
    run_hooks("createRuntime", (Hook(path=script(tmp_path / "good", "exit 0\n")),), b"{}", "/")
    with pytest.raises(HostError):
        run_hooks("createRuntime", (Hook(path="/nonexistent"),), b"{}", "/")
    assert os.listdir("/proc/self/fd") == before
