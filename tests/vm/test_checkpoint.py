"""Checkpoint, restore and fork: processes go on where they were, what must differ differs, failures are one
line and lose nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from bufferzone.snapshot import checkpoint_dir
from vm.leftovers import Watch
from vm.netns import World
from vm.verbs import BOOT_S, Container, await_end, await_true, bundle, config, write_config
from vm.warm import Warm

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        shutil.which("mkfs.erofs", path="/usr/bin:/usr/sbin") is None, reason="not installed: mkfs.erofs"
    ),
]

MARK = "bzcheckpoint"
BLOCK = {"bufferzone.rootfs": "block"}
#: counts in memory, one line for each number
COUNTER = 'i=0; echo old > /file; while :; do i=$((i+1)); echo "n $i."; sleep 0.1; done'


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", guest_image, templates=False)
    watch = Watch(warm.runtime.root, mark=MARK)
    yield warm
    warm.runtime.close()
    watch.assert_nothing_left()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    linux = {**config("")["linux"], "cgroupsPath": f"/{MARK}-test"}
    return bundle(tmp_path / "bundle", COUNTER, annotations=BLOCK, linux=linux)


def numbers(container: Container) -> list[int]:
    """What it has counted so far; whole lines only."""
    words = container.seen.get(container.out, b"").decode().split("n ")
    return [int(word.split(".")[0]) for word in words if "." in word]


def restore(warm: Warm, id: str, directory: Path, image: Path, *flags: str) -> Container:
    """`restore --detach`, with pipes of our own."""
    pid_file = image.parent / f"{id}.pid"
    out, out_there = os.pipe()
    err, err_there = os.pipe()
    words = ["restore", "--detach", "--image-path", str(image), "--bundle", str(directory)]
    verb = subprocess.Popen(
        warm.runtime.command(*words, "--pid-file", str(pid_file), *flags, id),
        stdin=subprocess.DEVNULL,
        stdout=out_there,
        stderr=err_there,
    )
    os.close(out_there)
    os.close(err_there)
    container = Container(id, 0, out, err)
    warm.runtime._open.append(container)
    assert verb.wait(BOOT_S) == 0, container.errors()
    container.pid = int(pid_file.read_text())
    return container


def refusal(warm: Warm, directory: Path, image: Path) -> str:
    """The one line of a restore that must not work; nothing of it is left."""
    done = warm.runtime.verb("restore", "-d", "--image-path", str(image), "-b", str(directory), "refused")
    assert done.status == 1
    assert not (warm.runtime.root / "refused").exists()
    return done.line.removeprefix("bufferzone: ")


def test_a_restored_container_goes_on_with_the_next_number(warm: Warm, made: Path, tmp_path: Path) -> None:
    first = warm.runtime.run("one", made)
    first.expect("n 5.")
    warm.runtime.ok("checkpoint", "--image-path", str(tmp_path / "image"), "one")
    assert first.wait() == 137
    first.output()
    assert warm.runtime.status("one") == "stopped"
    assert first.errors() == ""
    last = numbers(first)[-1]
    assert numbers(first) == list(range(1, last + 1))
    warm.runtime.ok("delete", "one")
    second = restore(warm, "one", made, tmp_path / "image")
    second.expect(f"n {last + 4}.")
    assert numbers(second)[:4] == [last + 1, last + 2, last + 3, last + 4]
    state = warm.runtime.state("one")
    assert (state["status"], state["annotations"]["bufferzone.start"]) == ("running", "restored")
    assert warm.runtime.ok("exec", "one", "/bin/cat", "/file").out == "old\n"
    warm.runtime.ok("pause", "one")
    warm.runtime.ok("resume", "one")
    warm.runtime.ok("kill", "one", "KILL")
    assert second.wait() == 137
    warm.runtime.ok("delete", "one")


def test_left_running_it_goes_on_and_the_checkpoint_serves_twice(
    warm: Warm, made: Path, tmp_path: Path
) -> None:
    container = warm.runtime.run("one", made)
    container.expect("n 3.")
    image = tmp_path / "image"
    for _ in range(2):  # the second replaces the first
        warm.runtime.ok("checkpoint", "--leave-running", "--image-path", str(image), "one")
        last = numbers(container)[-1]
        container.expect(f"n {last + 3}.")
    assert numbers(container) == list(range(1, numbers(container)[-1] + 1))
    for id in ("two", "three"):
        restore(warm, id, made, image).expect(".")
    for id in ("one", "two", "three"):
        assert warm.runtime.status(id) == "running"
        warm.runtime.ok("delete", "--force", id)


def test_input_and_output_that_are_under_way_are_not_lost(warm: Warm, made: Path, tmp_path: Path) -> None:
    command = 'sleep 3; while read line; do echo "got $line."; done'
    directory = bundle(tmp_path / "cat", command, annotations=BLOCK)
    read_end, write_end = os.pipe()
    verb, container = warm.runtime.begin_create("one", directory, stdin=read_end)
    assert verb.wait(BOOT_S) == 0
    os.close(read_end)
    warm.runtime.ok("start", "one")
    os.write(write_end, b"first\nsecond\n")
    warm.runtime.ok("checkpoint", "--image-path", str(tmp_path / "image"), "one")
    seen = container.output()
    second = restore(warm, "two", directory, tmp_path / "image")
    text = seen + second.output()  # its stdin is /dev/null, so it ends
    assert text == "got first.\ngot second.\n"
    os.close(write_end)
    warm.runtime.await_status("two", "stopped")  # its output ends before its last process is reaped
    warm.runtime.ok("delete", "two")
    warm.runtime.ok("delete", "one")


def test_forks_share_the_past_and_nothing_else(warm: Warm, made: Path, tmp_path: Path) -> None:
    container = warm.runtime.run("one", made)
    container.expect("n 5.")
    forked = warm.bz("fork", "--output", str(tmp_path), "one", "two", "three")
    assert (forked.status, forked.out) == (0, "two\nthree\n"), forked.err
    first = []
    for id in ("two", "three"):
        path = tmp_path / f"{id}.out"
        await_true(lambda path=path: path.read_text().count(".") > 2, "lines of a fork")
        first.append(path.read_text().split()[1])
    assert first[0] == first[1] != "1."
    every = ("one", "two", "three")
    random = {warm.runtime.ok("exec", id, "/bin/cat", "/proc/sys/kernel/random/uuid").out for id in every}
    assert len(random) == 3
    for id in every:  # the original stood still meanwhile
        asked = time.time()
        told = float(warm.runtime.ok("exec", id, "/bin/sh", "-c", "echo $EPOCHREALTIME").out)
        assert asked - 0.05 < told < time.time() + 0.05, id
    names = [warm.runtime.ok("exec", id, "/bin/cat", "/proc/sys/kernel/hostname").out for id in every[1:]]
    assert names == ["two\n", "three\n"]
    warm.runtime.ok("exec", "two", "/bin/sh", "-c", "echo mine > /file")
    files = [warm.runtime.ok("exec", id, "/bin/cat", "/file").out for id in every]
    assert files == ["old\n", "mine\n", "old\n"]
    log = (warm.runtime.root / "one" / "shim.log").read_text()
    stood_ms = int(log.partition("was stopped for ")[2].split()[0])
    assert stood_ms < 2000  # tens on an idle machine
    for id in every:
        assert warm.runtime.status(id) == "running"
        warm.runtime.ok("kill", id, "KILL")
        warm.runtime.await_status(id, "stopped")
        warm.runtime.ok("delete", id)
    assert os.listdir(tmp_path / "warm" / "forks") == []


def test_what_cannot_be_saved_is_one_line_and_runs_on(warm: Warm, made: Path, tmp_path: Path) -> None:
    container = warm.runtime.run("one", made)
    shared = warm.runtime.run("shared", bundle(tmp_path / "shared", COUNTER))
    image = tmp_path / "image"
    refused = warm.runtime.verb("checkpoint", "--image-path", str(image), "shared")
    assert refused.line == (
        "bufferzone: cannot checkpoint container shared: its root file system is shared with virtiofs, which "
        "QEMU cannot save (hint: create it with --annotation bufferzone.rootfs=block and without volumes)"
    )
    runner = subprocess.Popen(warm.runtime.command("exec", "one", "/bin/sleep", "1000"))
    await_true(lambda: b"sleep\x001000" in process_table(warm, "one"), "the exec")
    refused = warm.runtime.verb("checkpoint", "--image-path", str(image), "one")
    assert "an exec or another container is in its VM" in refused.line
    runner.send_signal(signal.SIGTERM)
    runner.wait(30)
    assert not image.exists() or os.listdir(image) == []
    for each in (container, shared):
        each.expect("n 3.")
        warm.runtime.ok("delete", "--force", each.id)


def test_a_container_with_a_network_goes_on_in_another_namespace(warm: Warm, tmp_path: Path) -> None:
    with World() as world, World() as other:
        world.link("eth0", "10.213.7.2/24")
        other.link("eth7", "10.213.9.2/24")
        directory = bundle(tmp_path / "net")
        linux = {**world.linux(), "cgroupsPath": f"/{MARK}-test"}
        value = {**config(""), "annotations": BLOCK, "linux": linux}
        script = "echo began; exec busybox nc -ll -p 5000 -e /bin/echo hi"
        value["process"]["args"] = ["/bin/sh", "-c", script]
        write_config(directory, value)
        container = warm.runtime.run("one", directory)
        container.expect("began")
        assert said(world, "10.213.7.2") == b"hi\n"
        image = tmp_path / "image"
        for flag in ("--leave-running", "--work-path=/tmp"):
            warm.runtime.ok("checkpoint", flag, "--image-path", str(image), "one")
            if flag == "--leave-running":
                assert said(world, "10.213.7.2") == b"hi\n"
        assert container.wait() == 137
        warm.runtime.ok("delete", "one")
        assert world.left() == []
        linux["namespaces"][-1]["path"] = other.path
        write_config(directory, value)
        second = restore(warm, "two", directory, image)
        assert said(other, "10.213.9.2") == b"hi\n"  # by the server that was saved
        assert second.seen == {}
        assert "eth7" in warm.runtime.ok("exec", "two", "busybox", "ip", "address").out
        warm.runtime.ok("delete", "--force", "two")


def test_a_container_with_two_networks_is_not_saved(warm: Warm, tmp_path: Path) -> None:
    with World() as world:
        world.link("eth0", "10.213.7.2/24")
        world.link("eth1", "10.213.8.2/24")
        directory = bundle(tmp_path / "net", COUNTER, annotations=BLOCK, linux=world.linux())
        container = warm.runtime.run("one", directory)
        refused = warm.runtime.verb("checkpoint", "--image-path", str(tmp_path / "image"), "one")
        assert "it has several interfaces" in refused.line
        container.expect("n 3.")
        warm.runtime.ok("delete", "--force", "one")


def said(world: World, address: str) -> bytes:
    """What the container's server says to whoever connects from outside, once it listens."""

    def ask() -> bytes:
        try:
            with world.connect(address, 5000) as connection:
                return connection.recv(100)
        except ConnectionError:
            return b""

    answer: bytes = await_true(ask, "an answer")
    return answer


def process_table(warm: Warm, id: str) -> bytes:
    done = warm.runtime.verb("ps", "--format", "table", id)
    return done.out.encode().replace(b" ", b"\x00")


def test_a_full_disk_fails_the_checkpoint_and_not_the_container(
    warm: Warm, made: Path, tmp_path: Path
) -> None:
    container = warm.runtime.run("one", made)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", str(small)], check=True)
    try:
        failed = warm.runtime.verb("checkpoint", "--image-path", str(small), "one")
        assert failed.line == f"bufferzone: cannot write the checkpoint {small}: No space left on device"
        assert os.listdir(small) == []
        container.expect("n 3.")
        last = numbers(container)[-1]
        container.expect(f"n {last + 3}.")
    finally:
        subprocess.run(["umount", str(small)], check=True)
    warm.runtime.ok("delete", "--force", "one")


def test_a_damaged_or_foreign_checkpoint_is_one_line(warm: Warm, made: Path, tmp_path: Path) -> None:
    container = warm.runtime.run("one", made)
    container.expect("n 2.")
    image = tmp_path / "image"
    warm.runtime.ok("checkpoint", "--image-path", str(image), "one")
    warm.runtime.ok("delete", "one")
    manifest = image / checkpoint_dir.MANIFEST
    good = manifest.read_text()
    assert image.stat().st_mode & 0o777 == 0o700
    other_bundle = bundle(tmp_path / "other", "exec sleep 1000", annotations=BLOCK)
    assert refusal(warm, other_bundle, image) == (
        f"the checkpoint {image} does not fit: "
        "config.json differs from that of the saved container: process.args"
    )
    value = json.loads(good)
    for key, other in (("version", "0.0.1"), ("key", "0" * 32)):
        manifest.write_text(json.dumps({**value, key: other}))
        assert "was made " in refusal(warm, made, image)
    manifest.write_text(good[:100])
    assert f"the checkpoint {image} is damaged: {checkpoint_dir.MANIFEST}" in refusal(warm, made, image)
    manifest.unlink()
    assert refusal(warm, made, image).startswith(
        f"no checkpoint in {image}: {checkpoint_dir.MANIFEST} is missing"
    )
    manifest.write_text(good)
    for kind in (checkpoint_dir.STATE, checkpoint_dir.DISK, checkpoint_dir.MEMORY):
        (path,) = image.glob(f"bufferzone-{kind}-*")
        name = path.name
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        assert (
            refusal(warm, made, image) == f"the checkpoint {image} is damaged: {name} is not what was written"
        )
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(byte)
    restore(warm, "one", made, image).expect("n ")
    warm.runtime.ok("delete", "--force", "one")


def test_a_shim_killed_while_it_saves_leaves_no_checkpoint(warm: Warm, made: Path, tmp_path: Path) -> None:
    container = warm.runtime.run("one", made)
    container.expect("n 2.")
    image = tmp_path / "image"
    verb = subprocess.Popen(
        warm.runtime.command("checkpoint", "--image-path", str(image), "one"), stderr=subprocess.DEVNULL
    )
    await_true(lambda: image.is_dir() and list(image.glob("bufferzone-*")), "the checkpoint's first file")
    pids = warm.runtime.helper_pids("one")
    os.kill(pids["shim"], signal.SIGKILL)
    assert verb.wait(30) != 0
    for pid in pids.values():
        await_end(pid)
    assert warm.runtime.status("one") == "stopped"
    warm.runtime.ok("delete", "--force", "one")
    assert refusal(warm, made, image).startswith(f"no checkpoint in {image}")


MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not (MEMORY_CGROUP / "memory.limit_in_bytes").exists(), reason="no memory cgroup (v1)")
def test_what_is_saved_is_not_charged_to_the_container(warm: Warm, tmp_path: Path) -> None:
    linux = {
        **config("")["linux"],
        "cgroupsPath": f"/{MARK}-limited",
        "resources": {"memory": {"limit": 400 << 20}},
    }
    fill = "yes bufferzone | head -c 67108864 >/fill; "  # in the guest's memory, whatever guest that is
    options = {"annotations": BLOCK, "linux": linux}
    container = warm.runtime.run("one", bundle(tmp_path / "b", fill + COUNTER, **options))
    container.expect("n 10.")
    place = MEMORY_CGROUP / f"{MARK}-limited"
    saved_bytes = int((place / "memory.usage_in_bytes").read_text())
    peak = place / "memory.max_usage_in_bytes"
    peak.write_text("0")
    image = tmp_path / "image"
    warm.runtime.ok("checkpoint", "--leave-running", "--image-path", str(image), "one")
    grown = int(peak.read_text()) - saved_bytes
    written = sum(path.stat().st_blocks * 512 for path in image.iterdir())
    assert written > 96 << 20
    assert grown < 48 << 20, f"{grown >> 20} MiB"  # QEMU translates what the guest had not run before
    warm.runtime.ok("delete", "--force", "one")


def begin(warm: Warm, program: str, *words: str) -> subprocess.Popen[bytes]:
    """`bufferzone` or `bz`, not waited for."""
    command = warm.runtime.command(*words)
    at = command.index("--root")
    command[at - 1] = str(Path(command[at - 1]).with_name(program))
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_qemu_killed_while_it_is_saved_is_the_end_of_the_container_alone(
    warm: Warm, made: Path, tmp_path: Path
) -> None:
    container = warm.runtime.run("one", made)
    container.expect("n 2.")
    image = tmp_path / "image"
    verb = begin(warm, "bufferzone", "checkpoint", "--image-path", str(image), "one")
    await_true(lambda: image.is_dir() and list(image.glob("bufferzone-*")), "the checkpoint's first file")
    os.kill(warm.runtime.helper_pids("one")["qemu"], signal.SIGKILL)
    assert verb.wait(60) != 0
    assert container.wait() == 137
    assert warm.runtime.status("one") == "stopped"
    warm.runtime.ok("delete", "--force", "one")
    assert os.listdir(image) == []


def test_a_killed_fork_leaves_the_original_and_copies_that_can_be_deleted(
    warm: Warm, made: Path, tmp_path: Path
) -> None:
    container = warm.runtime.run("one", made)
    container.expect("n 2.")
    forks = tmp_path / "warm" / "forks"
    root = warm.runtime.root
    moments = {
        "two": lambda: list(forks.glob("scratch-*/image/bufferzone-*")),
        "three": lambda: (root / "three" / "bundle" / "config.json").exists(),
        "four": lambda: (root / "four" / "shim.sock").exists(),
    }
    for id, moment in moments.items():
        verb = begin(warm, "bz", "fork", "one", id)
        await_true(moment, f"the moment of {id}")
        verb.kill()
        verb.wait()
        assert len(list(forks.iterdir())) == 1  # the one before was tidied away
        if (root / id).exists():
            warm.runtime.ok("delete", "--force", id)
    last = numbers(container)[-1]
    container.expect(f"n {last + 5}.")
    assert warm.bz("fork", "one", "last").status == 0
    assert os.listdir(forks) == []
    for id in ("last", "one"):
        warm.runtime.ok("delete", "--force", id)


@pytest.mark.skipif(shutil.which("criu") is None, reason="not installed: criu, which podman looks for")
def test_podman_checkpoints_and_restores(podman, nothing_left) -> None:
    command = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done")
    annotation = "--annotation=bufferzone.rootfs=block"
    podman("run", "--detach", "--name", "saved", annotation, podman.image, *command, timeout_s=120)
    await_true(lambda: len(podman("logs", "saved").lines) > 3, "some numbers")
    podman("container", "checkpoint", "saved", timeout_s=120)
    assert podman.inspect("saved")["State"]["Status"] == "exited"
    count = len(podman("logs", "saved").lines)
    podman("container", "restore", "saved", timeout_s=120)
    await_true(lambda: len(podman("logs", "saved").lines) > count + 3, "more numbers")
    found = [int(line) for line in podman("logs", "saved").lines]
    assert found == list(range(1, len(found) + 1))
    archive = podman.directory / "archive.tar"
    podman("container", "checkpoint", "--export", archive, "saved", timeout_s=120)
    count = len(podman("logs", "saved").lines)
    podman("container", "restore", "--import", archive, "--name", "moved", timeout_s=120)
    await_true(lambda: len(podman("logs", "moved").lines) > count + 3, "more numbers of the copy")
    moved = [int(line) for line in podman("logs", "moved").lines]  # the archive has the log, too
    assert moved == list(range(1, len(moved) + 1))
    assert podman("exec", "moved", "cat", "/etc/hostname").status == 0
    podman("rm", "--force", "--time", "0", "saved", "moved")
