"""Many containers, one after the other and at once: nothing accumulates, nothing stays.

The short forms run always. The long ones of the promise (about 10 minutes on two cores under TCG):
BUFFERZONE_CYCLES=200 BUFFERZONE_AT_ONCE=20 pytest tests/vm/test_failures_cycles.py
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.leftovers import Watch, descriptors
from vm.verbs import BOOT_S, Runtime, await_true, bundle, config

pytestmark = pytest.mark.vm

CYCLES = int(os.environ.get("BUFFERZONE_CYCLES", "8"))
AT_ONCE = int(os.environ.get("BUFFERZONE_AT_ONCE", "4"))


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "root")
    yield runtime
    runtime.close()


@pytest.fixture
def watch(runtime: Runtime) -> Watch:
    return Watch(runtime.root, mark="bzcycle")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": "/bzcycle-test"}
    return bundle(tmp_path / "bundle", "echo up; exec sleep 1000", linux=linux)


def test_create_start_kill_delete_again_and_again_leaves_nothing(
    runtime: Runtime, watch: Watch, made: Path
) -> None:
    ours = descriptors(os.getpid())
    for _ in range(CYCLES):
        container = runtime.run("c", made)
        container.expect("up")
        runtime.ok("kill", "c", "KILL")
        assert container.wait() == 137
        console = (runtime.root / "c" / "console.log").read_text(errors="replace")
        assert "kernel BUG" not in console  # a submount that was unmounted too early
        runtime.ok("delete", "c")
        runtime.close()
        watch.assert_nothing_left()
    assert descriptors(os.getpid()) == ours


def test_execs_leave_no_descriptor_in_the_shim(runtime: Runtime, watch: Watch, made: Path) -> None:
    container = runtime.run("c", made)
    container.expect("up")
    shim = runtime.shim_pid("c")
    runtime.ok("exec", "c", "true")
    before = len(descriptors(shim))  # the connection of that exec may be among them still
    for _ in range(CYCLES):
        assert runtime.ok("exec", "c", "echo", "x").out == "x\n"
    await_true(lambda: len(descriptors(shim)) <= before, "as few descriptors as before")
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


def test_sandboxes_at_once_do_not_disturb_each_other(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(AT_ONCE)]
    started = []
    for name in names:
        pid_file = str(tmp_path / f"{name}.pid")
        made = bundle(tmp_path / name, f"echo I am {name}; exec sleep 1000")
        started.append((*runtime.begin_create(name, made, "--pid-file", pid_file), pid_file))
    for verb, container, pid_file in started:
        assert verb.wait(BOOT_S * AT_ONCE) == 0, container.errors()
        container.pid = int(Path(pid_file).read_text())
    for _, container, _ in started:
        runtime.ok("start", container.id)
        container.expect(f"I am {container.id}")
    assert {runtime.status(name) for name in names} == {"running"}
    verbs = [subprocess.Popen(runtime.command("delete", "--force", name)) for name in names]
    assert [verb.wait(BOOT_S) for verb in verbs] == [0] * AT_ONCE
    for _, container, _ in started:
        assert container.wait() == 137
    watch.assert_nothing_left()
