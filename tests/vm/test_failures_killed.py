"""SIGKILL to each process of a sandbox in each phase: `state` is true, the caller is told, nothing stays."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.client.connection import Client
from bufferzone.wire import task
from vm import private
from vm.leftovers import Watch, is_alive
from vm.verbs import Container, Runtime, await_end, await_true, bundle, config, kill

pytestmark = pytest.mark.vm

SAID = {
    "shim": "the shim that ran its VM was killed",
    "virtiofsd": "virtiofsd was killed (signal 9)",
    "qemu": "the virtual machine was killed (SIGKILL) during: run",
}
TALKER = "echo up; while read line; do echo got $line; done; exec sleep 1000"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "root")
    yield runtime
    runtime.close()


@pytest.fixture
def watch(runtime: Runtime) -> Watch:
    return Watch(runtime.root, mark="bzkill")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": "/bzkill-test"}
    return bundle(tmp_path / "bundle", TALKER, linux=linux)


def bring_to(phase: str, runtime: Runtime, container: Container) -> None:
    if phase in ("running", "paused"):
        runtime.ok("start", "c")
        container.expect("up")
    if phase == "paused":
        with Client.connect(str(runtime.root / "c")) as client:
            client.call("Pause", task.PauseRequest(id="c"), timeout_s=30)
    assert runtime.status("c") == phase


@pytest.mark.parametrize("phase", ["created", "running", "paused"])
@pytest.mark.parametrize("victim", ["shim", "virtiofsd", "qemu"])
def test_a_killed_helper_is_told_and_leaves_nothing(
    phase: str, victim: str, runtime: Runtime, watch: Watch, made: Path
) -> None:
    container = runtime.create("c", made)
    bring_to(phase, runtime, container)
    kill(runtime.helper_pids("c")[victim])
    assert container.wait() == 137
    lines = container.errors().splitlines()
    assert [line for line in lines if SAID[victim] in line] == lines[:1], lines
    state = runtime.await_status("c", "stopped")
    assert state["pid"] == 0
    if victim != "shim":
        assert SAID[victim] in state["annotations"]["bufferzone.failure"]
    assert "container not running" in runtime.verb("kill", "c", "9").line
    assert runtime.verb("exec", "c", "true").line.endswith("cannot exec in a stopped container")
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


@pytest.mark.parametrize("phase", ["created", "running", "paused"])
def test_a_killed_waiter_takes_its_process_along(
    phase: str, runtime: Runtime, watch: Watch, made: Path
) -> None:
    container = runtime.create("c", made)
    bring_to(phase, runtime, container)
    kill(container.pid)
    assert runtime.await_status("c", "stopped")["pid"] == 0
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


def test_a_shim_killed_after_the_end_leaves_a_stopped_container(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    container = runtime.run("c", bundle(tmp_path / "short", "exit 3"))
    assert container.wait() == 3
    kill(runtime.shim_pid("c"))
    assert runtime.status("c") == "stopped"
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


@pytest.mark.parametrize("victim", ["shim", "virtiofsd", "qemu"])
def test_a_helper_killed_while_booting_fails_the_create_with_the_phase(
    victim: str, runtime: Runtime, watch: Watch, made: Path
) -> None:
    no_templates = made.parent / "config.toml"  # a warm start that fails is followed by a cold one
    no_templates.write_text("templates = false\n")
    runtime.before = private.words(settings=str(no_templates))
    verb, container = runtime.begin_create("c", made)
    record = runtime.root / "c" / "leftovers.json"
    await_true(lambda: record.exists() and "qemu" in runtime.helper_pids("c"), "qemu")
    pids = runtime.helper_pids("c")
    kill(pids[victim])
    assert verb.wait(30) == 1
    lines = container.errors().splitlines()
    assert len(lines) == 1, lines
    wanted = {
        "shim": r"the shim (was killed \(signal 9\) before it listened|ended(: Create| before it answered))",
        "virtiofsd": r"virtiofsd was killed \(signal 9\): the sandbox lost its file system",
        "qemu": r"was killed \(SIGKILL\) during: (start QEMU|boot the guest);",
    }
    assert re.search(wanted[victim], lines[0])
    watch.assert_nothing_left()


@pytest.mark.parametrize("moment_s", [0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 2.5])
def test_a_create_that_is_killed_leaves_what_delete_force_removes(
    moment_s: float, runtime: Runtime, watch: Watch, made: Path
) -> None:
    verb, container = runtime.begin_create("c", made)
    try:
        verb.wait(moment_s)
    except subprocess.TimeoutExpired:
        verb.send_signal(signal.SIGKILL)
        verb.wait(10)
    found = runtime.verb("state", "c")
    assert found.status == 0 or "does not exist" in found.line
    runtime.ok("delete", "--force", "c", timeout_s=60)
    assert "does not exist" in runtime.verb("state", "c").line
    watch.assert_nothing_left()
    assert "Traceback" not in container.errors()


def test_a_waiter_killed_while_its_exec_runs_ends_the_exec_alone(
    runtime: Runtime, watch: Watch, made: Path, tmp_path: Path
) -> None:
    container = runtime.run("c", made)
    container.expect("up")
    pid_file = tmp_path / "exec.pid"
    words = runtime.command("exec", "--detach", "--pid-file", str(pid_file), "c", "sleep", "999")
    subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=180, check=True)
    assert is_alive(int(pid_file.read_text()))
    assert "sleep 999" in runtime.ok("exec", "c", "ps").out
    kill(int(pid_file.read_text()))
    await_true(lambda: "sleep 999" not in runtime.ok("exec", "c", "ps").out, "end of the exec")
    assert runtime.status("c") == "running"
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


def test_a_shim_that_hangs_is_killed_by_delete_force(runtime: Runtime, watch: Watch, made: Path) -> None:
    container = runtime.run("c", made)
    pids = runtime.helper_pids("c")
    shim = pids["shim"]
    subprocess.run(["/bin/kill", "-STOP", str(shim)], check=True)
    runtime.ok("delete", "--force", "c", timeout_s=90)
    await_end(shim)
    assert container.wait() == 137
    watch.assert_nothing_left()


def test_a_virtual_machine_that_hangs_is_killed_by_delete_force(
    runtime: Runtime, watch: Watch, made: Path
) -> None:
    container = runtime.run("c", made)
    subprocess.run(["/bin/kill", "-STOP", str(runtime.helper_pids("c")["qemu"])], check=True)
    runtime.ok("delete", "--force", "c", timeout_s=90)
    assert container.wait() == 137
    watch.assert_nothing_left()
