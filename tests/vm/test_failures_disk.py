"""A full disk at every step of a create and after it, and hooks that fail: one clear line, nothing left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bufferzone.linux import mount as mnt
from bufferzone.model import ImageRef
from vm.leftovers import Watch
from vm.verbs import Runtime, await_true, bundle, config, kill, write_config
from vm.warm import Warm

pytestmark = pytest.mark.vm

PAGE = 4096
#: inodes of the state root with which each step of a create is the one that finds no room: see the loop
FIRST_INODES, ENOUGH_INODES = 2, 40
FULL = "No space left on device"
#: files of the state directory, each of which there is no room for at some step; where there is none for
#: a template's memory the start goes on cold, and wants more for `leftovers.json` than for the rest
FAIL = {
    "cold": ("owner", "state.json", "share", "virtiofsd.log", "leftovers.json", "console.log"),
    "warm": ("owner", "state.json", "share", "virtiofsd.log", "leftovers.json"),
}


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "root")
    yield runtime
    runtime.close()


@pytest.fixture
def watch(runtime: Runtime) -> Watch:
    return Watch(runtime.root)


@contextmanager
def small_disk(directory: Path, **options: int) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    text = ",".join(f"{name}={value}" for name, value in options.items())
    mnt.mount("small", str(directory), "tmpfs", 0, text)
    try:
        yield directory
    finally:
        mnt.unmount(str(directory), mnt.MNT_DETACH)


def fill(directory: Path) -> list[Path]:
    """Take every byte and every inode; returns the files that did it."""
    made = [directory / "bytes"]
    with made[0].open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * PAGE) == PAGE:
            pass
    with suppress(OSError):
        while True:
            path = directory / f"inode{len(made)}"
            path.touch()
            made.append(path)
    return made


def refusals(runtime: Runtime, made: Path, inodes: int, taken: int) -> str:
    """The line of a create on a disk with so much room, or nothing when it went well."""
    with small_disk(runtime.root, size=1 << 20, nr_inodes=inodes) as root:
        if taken:
            (root / "taken").write_bytes(b"x" * taken)
        result = runtime.try_create("c", made)
        left = {path.name for path in root.iterdir()} - {"kvm-probe.json", "taken"}
        if result.status == 0:
            runtime.ok("delete", "--force", "c")
            return ""
        assert left == set(), result.err
        return result.line


@pytest.mark.parametrize("begun", FAIL)
def test_a_create_on_a_disk_that_fills_up_at_any_step_says_so_and_leaves_nothing(
    begun: str, guest_image: ImageRef, template: Path, tmp_path: Path
) -> None:
    warm = Warm(tmp_path / "warm", guest_image, templates=begun == "warm")
    warm.take_template(template)
    watch = Watch(warm.runtime.root)
    made = bundle(tmp_path / "bundle")
    lines = []
    for inodes in range(FIRST_INODES, ENOUGH_INODES):
        lines.append(refusals(warm.runtime, made, inodes, 0))
        watch.assert_nothing_left()
        if not lines[-1]:
            break
    warm.runtime.close()
    assert lines.pop() == ""
    assert all(line.endswith(FULL) for line in lines), lines
    for name in FAIL[begun]:
        assert any(f"/c/{name}: " in line for line in lines), "\n".join((name, *lines))


def test_a_create_without_a_page_left_says_so_and_leaves_nothing(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    made = bundle(tmp_path / "bundle")
    lines = []
    for pages in range(16):
        lines.append(refusals(runtime, made, 100, (1 << 20) - pages * PAGE))
        watch.assert_nothing_left()
        if not lines[-1]:
            break
    assert len(lines) > 3
    assert lines.pop() == ""
    assert all(line.endswith(FULL) for line in lines), lines


def test_a_disk_that_fills_up_later_hides_no_change_of_state(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    made = bundle(tmp_path / "bundle", "echo hi; exec sleep 1000")
    with small_disk(runtime.root, size=1 << 20, nr_inodes=100) as root:
        for victim in ("", "qemu", "shim"):
            container = runtime.create("c", made)
            files = fill(root)
            runtime.ok("start", "c")
            assert runtime.status("c") == "running"
            runtime.ok("pause", "c")
            assert runtime.status("c") == "paused"
            runtime.ok("resume", "c")
            if victim:
                kill(runtime.helper_pids("c")[victim])
            else:
                runtime.ok("kill", "c", "KILL")
            assert container.wait() == 137
            assert runtime.await_status("c", "stopped")["pid"] == 0
            runtime.ok("delete", "c", timeout_s=30)
            for path in files:
                path.unlink()
            assert [path.name for path in root.iterdir()] == ["kvm-probe.json"]
    watch.assert_nothing_left()


def test_a_pid_file_on_a_full_disk_fails_what_wanted_it(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    made = bundle(tmp_path / "bundle")
    with small_disk(tmp_path / "full", size=PAGE, nr_inodes=10) as full:
        fill(full)
        wanted = f"bufferzone: cannot write {full}/pid: {FULL}"
        assert runtime.try_create("c", made, "--pid-file", f"{full}/pid").line == wanted
        watch.assert_nothing_left()
        runtime.run("c", made)
        result = runtime.verb("exec", "--detach", "--pid-file", f"{full}/pid", "c", "sleep", "999")
        assert (result.status, result.line) == (255, wanted)
        await_true(lambda: "sleep 999" not in runtime.ok("exec", "c", "ps").out, "end of the exec")
        runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


def test_a_bundle_on_a_full_disk_runs_or_is_refused_with_the_reason(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    """Without a /dev of its own the container needs device nodes in its root file system."""
    pid_file = tmp_path / "pid"
    for mounts in ([], [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}]):
        with small_disk(tmp_path / "full", size=4 << 20, nr_inodes=100) as full:
            made = bundle(full / "bundle", "echo x > /file || echo end; exec sleep 1000")
            value = config("echo x > /file || echo end; exec sleep 1000")
            write_config(made, {**value, "mounts": [*value["mounts"], *mounts]})
            fill(full)
            if not mounts:
                assert runtime.try_create("c", made).line.endswith("no space left on device")
                continue
            verb, container = runtime.begin_create("c", made, "--pid-file", str(pid_file))
            assert verb.wait(120) == 0
            runtime.ok("start", "c")
            container.expect("end")
            runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


def hooked(directory: Path, stage: str, text: str = "", **keys: object) -> Path:
    """A bundle with one hook: a script on the host, or in the image when it runs in the container."""
    directory.mkdir()
    place = directory / "bundle" / "rootfs" if stage == "startContainer" else directory
    path = "/hook" if stage == "startContainer" else str(place / "hook")
    hooks = {stage: [{"path": path, **keys}]}
    made = bundle(directory / "bundle", "exec sleep 1000", hooks=hooks)
    if text:
        (place / "hook").write_text(f"#!/bin/sh\n{text}\n")
        (place / "hook").chmod(0o755)
    return made


@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_fails_the_create_by_its_name(
    stage: str, runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    line = runtime.try_create("c", hooked(tmp_path / "a", stage, "echo broken >&2; exit 4")).line
    assert line.startswith(f"bufferzone: {stage} hook 0 (")
    assert line.endswith("failed with status 4: broken")
    watch.assert_nothing_left()


def test_a_hook_that_takes_too_long_or_says_too_much_fails_the_create(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    slow = hooked(tmp_path / "slow", "createRuntime", "exec sleep 1000", timeout=1)
    assert runtime.try_create("c", slow).line.endswith("ran longer than 1 s")
    loud = hooked(tmp_path / "loud", "createRuntime", "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 3")
    assert "failed with status 3: xxx" in runtime.try_create("c", loud, timeout_s=60).line
    watch.assert_nothing_left()


def test_a_hook_that_fails_the_start_stops_the_container(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    container = runtime.create("c", hooked(tmp_path / "a", "startContainer", "echo broken >&2; exit 4"))
    line = runtime.verb("start", "c").line
    assert "startContainer hook" in line
    assert "status 4" in line
    container.wait()
    assert runtime.await_status("c", "stopped")["pid"] == 0
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


def test_a_poststart_hook_that_fails_is_a_warning_and_the_container_runs(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    """runtime-spec 1.2.0, which is what we declare, runtime.md "Lifecycle"."""
    runtime.run("c", hooked(tmp_path / "a", "poststart", "echo broken >&2; exit 4"))
    assert runtime.status("c") == "running"
    assert "failed with status 4: broken" in (runtime.root / "c" / "shim.log").read_text()
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


def test_a_create_hook_of_the_hosts_changes_the_root_file_system_and_sees_no_annotation_of_ours(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    directory = hooked(tmp_path / "a", "createContainer", f"cat > {tmp_path}/a/bundle/rootfs/told")
    value = json.loads((directory / "config.json").read_text())
    value["annotations"] = {"bufferzone.vcpus": "1", "mine": "x"}
    value["process"]["args"] = ["/bin/cat", "/told"]
    write_config(directory, value)
    container = runtime.run("c", directory)
    state = json.loads(container.output())
    assert state["annotations"] == value["annotations"]
    assert state["status"] == "creating"
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


def test_a_poststop_hook_that_fails_is_no_failure(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    container = runtime.run("c", hooked(tmp_path / "a", "poststop", "exit 4"))
    runtime.ok("kill", "c", "KILL")
    container.wait()
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({"memory": {"limit": 3 << 20}}, ""),
        ({"pids": {"limit": 1}}, ""),
        (
            {"memory": {"limit": 4096}},
            "config.json: linux.resources.memory.limit: must be at least 524288, got 4096",
        ),
        (
            {"cpu": {"quota": 1, "period": 100000}},
            "config.json: linux.resources.cpu.quota: must be at least 1000, got 1",
        ),
    ],
    ids=["memory", "pids", "one page", "cpu"],
)
def test_tiny_limits_are_kept_or_refused_and_wedge_nobody(
    resources: dict[str, dict[str, int]], wanted: str, runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    linux = {**config("")["linux"], "resources": resources}
    made = bundle(tmp_path / "bundle", "echo hi; exec sleep 1000", linux=linux)
    if wanted:
        assert wanted in runtime.try_create("c", made).line
    else:
        runtime.run("c", made).expect("hi")
        if "memory" in resources:
            hungry = runtime.verb("exec", "c", "dd", "if=/dev/zero", "of=/dev/null", "bs=50M", "count=1")
            assert hungry.status == 137
            assert json.loads(runtime.ok("state", "c").out)["status"] == "running"
        runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()
