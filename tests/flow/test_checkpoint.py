"""Checkpoint, restore and fork through the real shim, with the VMM that needs no VM, and what goes wrong.

Such a VM saves no processes: a program begins again, on the files that it wrote. All else is as with a VM.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from contextlib import contextmanager

import pytest

from bufferzone import config, state
from bufferzone.snapshot import checkpoint_dir, seal
from bufferzone.vmm.host import cgroup
from flow.cli import DEADLINE_S, SETTINGS, Cli, needs_host, read

pytestmark = [
    needs_host,
    pytest.mark.skipif(not os.path.exists("/usr/bin/mkfs.erofs"), reason="not installed: mkfs.erofs"),
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices"),
]

BLOCK = {"bufferzone.rootfs": "block"}
WRITABLE = {"readonly": False}
#: the `which`th time that the copier is asked to write a file, the shim says so and waits
_GATE = """
import os
from bufferzone.snapshot import copier

real, calls = copier.Saver.pack, []

def pack(saver, source, target):
    calls.append(source)
    if len(calls) == {which}:
        with open({at!r}, "wb") as at:
            at.write(b"%d" % saver._pid)
        with open({go!r}, "rb") as go:
            go.read()
    return real(saver, source, target)

copier.Saver.pack = pack
"""
DISK, MEMORY = 1, 2


@pytest.fixture
def bz(tmp_path):
    cli = Cli(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def image(tmp_path):
    return tmp_path / "image"


class Gate:
    """A shim that stops in the middle of a checkpoint."""

    def __init__(self, bz, which):
        self._names = [str(bz.base / f"gate-{name}") for name in ("at", "go")]
        for name in self._names:
            os.mkfifo(name)
        at, go = self._names
        bz.odd_shim(_GATE.format(which=which, at=at, go=go))
        self._at = os.open(at, os.O_RDONLY | os.O_NONBLOCK)

    def reached(self):
        """Wait until it stops there; the pid of the copier."""
        saver = int(read(self._at))
        os.close(self._at)
        return saver

    def open(self):
        os.close(os.open(self._names[1], os.O_WRONLY))


class Counter:
    """A container that counts in a file of its root, one line for each number."""

    def __init__(self, bz, id="one"):
        self.bz, self.id, self.out = bz, id, bz.base / f"{id}.out"
        self.bundle = bz.bundle("count", name=f"bundle-{id}", annotations=BLOCK, root=WRITABLE)

    def run(self):
        self.bz.create(self.id, self.bundle, out=str(self.out))
        self.bz("start", self.id)
        self.await_number()
        return self

    def numbers(self):
        """What it counted. Saved between a number and its file, it says that again after a restore."""
        said = [int(line) for line in self.out.read_text().splitlines()]
        return [number for number, before in zip(said, [0, *said], strict=False) if number != before]

    def await_number(self, more=2):
        """Wait until it has counted on."""
        await_lines(self.out, len(self.out.read_text().splitlines()) + more)

    def checkpoint(self, image, *flags, check=0):
        done = self.bz("checkpoint", "--image-path", str(image), *flags, self.id, check=check)
        assert done.stderr.count("\n") == check
        return done.stderr

    def restore(self, id, image, *, bundle=None, check=0):
        """Restore it as `id`, writing to the same file; what was said."""
        flags = ("--detach", "--image-path", str(image))
        bundle = bundle or self.bundle
        return self.bz.create(id, bundle, *flags, verb="restore", check=check, out=str(self.out))

    def refused(self, image, bundle=None):
        """The one line of a restore that must not work; nothing of it is left."""
        said = self.restore("refused", image, bundle=bundle, check=1)
        assert said.count("\n") == 1
        assert "refused" not in self.bz.left()
        return said.strip().removeprefix("bufferzone: ")


def await_lines(path, count):
    """Wait for so many lines: there is no event for a file that another process writes."""
    for _ in range(DEADLINE_S * 100):
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"no {count} lines: {path.read_text()}")


@contextmanager
def small_disk(bz, path, kib):
    path.mkdir()
    bz.host("mount", "-t", "tmpfs", "-o", f"size={kib}k", "small", str(path))
    try:
        yield
    finally:
        bz.host("umount", str(path))


def end_of(pid):
    """Wait for the end of a process that is not our child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([pidfd], [], [], DEADLINE_S)[0], "it has not ended"
    os.close(pidfd)


def test_a_restored_container_goes_on_with_the_next_number(bz, image):
    one = Counter(bz).run()
    bz("exec", "one", "sh", "-c", "rm /bin/greet && mkdir -m 700 /tmp/d && ln -s x /tmp/d/link")
    one.checkpoint(image)
    assert bz.state("one")["status"] == "stopped"
    bz("delete", "one")
    before = one.numbers()
    one.restore("two", image)
    one.await_number()
    assert one.numbers() == list(range(1, len(one.numbers()) + 1))
    assert len(one.numbers()) > len(before)
    told = bz.state("two")
    assert (told["status"], told["annotations"]["bufferzone.start"]) == ("running", "restored")
    assert bz("exec", "two", "ls", "/bin/greet", check=None).returncode == 1
    assert "link -> x" in bz("exec", "two", "ls", "-l", "/tmp/d").stdout
    for verb in (("pause",), ("resume",), ("kill",), ("delete", "--force")):
        bz(*verb, "two")
    assert bz.left() == []


def test_a_directory_that_was_made_anew_hides_the_one_below_it_when_restored(bz, image):
    one = Counter(bz).run()
    bz("exec", "one", "sh", "-c", "cp -r /bin /old; rm -r /etc; mkdir /etc; touch /etc/mine")
    one.checkpoint(image)
    one.restore("two", image)
    assert bz("exec", "two", "ls", "/etc").stdout == "mine\n"
    bz("delete", "--force", "two")
    bz("delete", "one")


def test_left_running_it_goes_on_and_the_checkpoint_serves_twice(bz, image):
    one = Counter(bz).run()
    for _ in range(2):  # the second replaces the first
        one.checkpoint(image, "--leave-running")
        one.await_number()
    assert one.numbers() == list(range(1, len(one.numbers()) + 1))
    assert len(os.listdir(image)) == 5
    for id in ("two", "three"):
        one.restore(id, image)
    assert [bz.state(id)["status"] for id in ("one", "two", "three")] == ["running"] * 3
    for id in ("one", "two", "three"):
        bz("delete", "--force", id)
    assert bz.left() == []


def test_what_was_restored_can_be_saved_and_restored_again(bz, image, tmp_path):
    one = Counter(bz).run()
    one.checkpoint(image)
    one.restore("two", image)
    one.await_number()
    one.id = "two"
    one.checkpoint(tmp_path / "again")
    one.restore("three", tmp_path / "again")
    one.await_number()
    assert one.numbers() == list(range(1, len(one.numbers()) + 1))
    for id in ("one", "two", "three"):
        bz("delete", "--force", id)


def test_a_paused_container_is_saved_and_stays_paused(bz, image):
    one = Counter(bz).run()
    bz("pause", "one")
    one.checkpoint(image, "--leave-running")
    assert bz.state("one")["status"] == "paused"
    bz("resume", "one")
    one.await_number()
    bz("delete", "--force", "one")


def controllers():
    if not cgroup.unified():
        return []
    with open(f"{cgroup.unified()}/cgroup.controllers") as file:
        return file.read().split()


@pytest.mark.skipif("pids" not in controllers(), reason="no pids controller in the unified hierarchy")
def test_limits_that_were_changed_are_saved(bz, image):
    one = Counter(bz).run()
    bz("update", "--pids-limit", "77", "one")
    one.checkpoint(image)
    one.restore("two", image)
    events = json.loads(bz("events", "--stats", "two").stdout)
    assert events["data"]["pids"]["limit"] == 77
    bz("delete", "--force", "two")
    bz("delete", "one")


def test_forks_share_the_past_and_nothing_else(tmp_path):
    bz = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{tmp_path}/store/images"')
    one = Counter(bz).run()
    out = tmp_path / "forks-out"
    out.mkdir()
    assert bz.bz("fork", "--output", str(out), "one", "two", "three").stdout == "two\nthree\n"
    for id in ("two", "three"):
        await_lines(out / f"{id}.out", 2)
    firsts = {(out / f"{id}.out").read_text().split()[0] for id in ("two", "three")}
    assert len(firsts) == 1
    assert int(firsts.pop()) in one.numbers()
    bz("exec", "two", "sh", "-c", "echo mine > /mine")
    assert bz("exec", "three", "cat", "/mine", check=None).returncode == 1
    assert [bz("exec", id, "cat", "/proc/sys/kernel/hostname").stdout for id in ("two", "three")] == [
        "two\n",
        "three\n",
    ]
    assert os.listdir(tmp_path / "store" / "forks") == []
    for id in ("one", "two", "three"):
        bz("delete", "--force", id)
    bz.close()


# ---- what cannot be saved


def test_what_cannot_be_saved_is_one_line_and_runs_on(bz, image):
    one = Counter(bz).run()
    bz.create("shared", bz.bundle("pause", name="shared"))
    bz("start", "shared")
    refused = bz("checkpoint", "--image-path", str(image), "shared", check=1).stderr
    assert "cannot checkpoint container shared: its root file system is shared" in refused
    assert refused.count("\n") == 1
    held = bz.command("exec", "--detach", "one", "sleep", "1000")
    null = subprocess.DEVNULL
    subprocess.run(held, env={}, stdin=null, stdout=null, stderr=null, check=True, timeout=DEADLINE_S)
    assert "an exec or another container is in its VM" in one.checkpoint(image, check=1)
    assert os.listdir(image) == []
    one.await_number()
    for id in ("one", "shared"):
        bz("delete", "--force", id)


def test_a_container_that_does_not_run_is_not_saved(bz, image):
    one = Counter(bz)
    bz.create("one", one.bundle)
    assert "cannot checkpoint" in one.checkpoint(image, check=1)
    assert os.listdir(image) == []
    bz("delete", "one")


@pytest.mark.parametrize("kib", [8, 64, 1000, 1960])
def test_a_full_disk_fails_the_checkpoint_and_not_the_container(bz, tmp_path, kib):
    one = Counter(bz).run()
    small = tmp_path / "small"
    with small_disk(bz, small, kib):
        said = one.checkpoint(small, check=1)
        assert said == f"bufferzone: cannot write the checkpoint {small}: No space left on device\n"
        assert bz.host("ls", "-A", str(small)) == ""
    one.await_number()
    bz("delete", "--force", "one")


def test_memory_that_is_full_fails_the_checkpoint_and_not_the_container(tmp_path, image):
    bz = Cli(tmp_path, f"{SETTINGS}\nmemory_mib = 128")
    one = Counter(bz).run()
    bz("exec", "one", "dd", "if=/dev/zero", "of=/tmp/large", "bs=1M", "count=1", "seek=140")
    assert "No space left on device" in one.checkpoint(image, check=1)
    bz("exec", "one", "sh", "-c", "rm /tmp/large")
    one.checkpoint(image)
    bz("delete", "one")
    bz.close()


# ---- what is in the way, or dies, in the middle


@pytest.mark.parametrize("which", [DISK, MEMORY])
@pytest.mark.parametrize("flags", [(), ("--leave-running",)])
def test_a_writer_that_dies_is_one_line_and_the_container_runs_on(bz, image, which, flags):
    gate = Gate(bz, which)
    one = Counter(bz).run()
    verb = bz.start("checkpoint", "--image-path", str(image), *flags, "one")
    saver = gate.reached()
    os.kill(saver, signal.SIGKILL)
    gate.open()
    _, said = verb.communicate(timeout=DEADLINE_S)
    assert said == "bufferzone: the process that writes the checkpoint died\n"
    assert os.listdir(image) == []
    one.await_number()
    one.checkpoint(image, "--leave-running")  # nothing stands in its way
    bz("delete", "--force", "one")


@pytest.mark.parametrize("which", [DISK, MEMORY])
def test_a_shim_killed_while_it_saves_leaves_the_older_checkpoint(bz, image, which):
    one = Counter(bz).run()
    one.checkpoint(image)
    bz("delete", "one")
    gate = Gate(bz, which)
    two = Counter(bz, "two").run()
    verb = bz.start("checkpoint", "--image-path", str(image), "two")
    saver = gate.reached()
    shim, vm = state.owner_pid(str(bz.root / "two")), bz.helper("two")
    os.kill(shim, signal.SIGKILL)
    _, said = verb.communicate(timeout=DEADLINE_S)
    assert verb.returncode == 1
    assert said.count("\n") == 1
    for pid in (shim, vm, saver):
        end_of(pid)
    assert bz.state("two")["status"] == "stopped"
    bz("delete", "two")
    assert len(os.listdir(image)) > 5  # what was never finished, until the next comes
    bz.shim = ""
    one.restore("three", image)
    one.id = "three"
    one.await_number()
    one.checkpoint(image)
    assert len(os.listdir(image)) == 5
    bz("delete", "three")
    assert bz.left() == []
    assert two.numbers()


def test_a_shim_killed_while_it_saves_the_first_leaves_none(bz, image):
    gate = Gate(bz, MEMORY)
    one = Counter(bz).run()
    verb = bz.start("checkpoint", "--image-path", str(image), "one")
    gate.reached()
    os.kill(state.owner_pid(str(bz.root / "one")), signal.SIGKILL)
    verb.communicate(timeout=DEADLINE_S)
    bz("delete", "--force", "one")
    bz.shim = ""
    assert one.refused(image).startswith(f"no checkpoint in {image}: manifest.json is missing")


def test_a_vm_killed_before_it_is_saved_is_the_end_of_the_container_and_no_checkpoint(bz, image):
    gate = Gate(bz, DISK)
    Counter(bz).run()
    verb = bz.start("checkpoint", "--image-path", str(image), "one")
    gate.reached()
    vm = bz.helper("one")
    os.kill(vm, signal.SIGKILL)
    end_of(vm)
    gate.open()
    _, said = verb.communicate(timeout=DEADLINE_S)
    assert verb.returncode == 1
    assert said.count("\n") == 1
    assert os.listdir(image) == []
    assert bz.state("one")["status"] == "stopped"
    bz("delete", "one")
    assert bz.left() == []


def test_a_vm_killed_once_its_memory_is_saved_leaves_a_whole_checkpoint(bz, image):
    gate = Gate(bz, MEMORY)
    one = Counter(bz).run()
    verb = bz.start("checkpoint", "--image-path", str(image), "one")
    gate.reached()
    vm = bz.helper("one")
    os.kill(vm, signal.SIGKILL)
    end_of(vm)
    gate.open()
    verb.communicate(timeout=DEADLINE_S)
    bz("delete", "one")
    bz.shim = ""
    one.restore("two", image)
    one.await_number()
    bz("delete", "--force", "two")


def test_a_second_checkpoint_into_the_same_directory_is_refused_while_one_is_written(bz, image):
    other = Counter(bz, "two").run()
    gate = Gate(bz, DISK)
    one = Counter(bz).run()
    verb = bz.start("checkpoint", "--image-path", str(image), "--leave-running", "one")
    gate.reached()
    assert "another checkpoint is being written there" in other.checkpoint(image, check=1)
    other.await_number()
    gate.open()
    assert verb.communicate(timeout=DEADLINE_S) == ("", "")
    assert json.loads((image / "manifest.json").read_text())["container"] == "one"
    for id in (one.id, other.id):
        bz("delete", "--force", id)


def test_two_checkpoints_of_one_container_at_once_are_made_one_after_the_other(bz, image, tmp_path):
    gate = Gate(bz, DISK)
    one = Counter(bz).run()
    first = bz.start("checkpoint", "--image-path", str(image), "--leave-running", "one")
    gate.reached()
    second = bz.start("checkpoint", "--image-path", str(tmp_path / "second"), "--leave-running", "one")
    gate.open()
    for verb in (first, second):
        assert verb.communicate(timeout=DEADLINE_S) == ("", "")
    assert one.numbers()
    for directory in (image, tmp_path / "second"):
        assert checkpoint_dir.read_manifest(str(directory))["container"] == "one"
    bz("delete", "--force", "one")


def test_a_killed_verb_does_not_stop_the_checkpoint(bz, image):
    gate = Gate(bz, DISK)
    one = Counter(bz).run()
    verb = bz.start("checkpoint", "--image-path", str(image), "one")
    saver = gate.reached()
    verb.kill()
    gate.open()
    end_of(saver)
    end_of(bz.helper("one"))
    bz("delete", "--force", "one")
    bz.shim = ""
    one.restore("two", image)
    bz("delete", "--force", "two")


def test_files_of_others_in_the_directory_are_left_and_fail_it(bz, image):
    image.mkdir()
    (image / "manifest.json").write_text("mine")
    one = Counter(bz).run()
    assert "manifest.json there is no checkpoint's of ours" in one.checkpoint(image, check=1)
    assert (image / "manifest.json").read_text() == "mine"
    one.await_number()
    bz("delete", "--force", "one")


# ---- what cannot be restored


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One for all tests that refuse one: each has a copy, which it may damage."""
    bz = Cli(tmp_path_factory.mktemp("saved"))
    Counter(bz).run().checkpoint(bz.base / "image")
    bz("delete", "one")
    yield bz.base / "image"
    bz.close()


@pytest.fixture
def saved(bz, image, checkpoint):
    """A counter with the bundle of the one that was saved in `image`."""
    subprocess.run(["cp", "--archive", "--sparse=always", checkpoint, image], check=True)
    return Counter(bz)


def resealed(value):
    """A manifest as this host seals it."""
    return {**value, seal.FIELD: seal.of(value, seal.key(config.load()))}


def test_one_that_another_host_saved_or_that_was_changed_is_taken_only_where_the_settings_say_so(
    image, saved, tmp_path
):
    manifest = image / "manifest.json"
    good = json.loads(manifest.read_text())
    for change in ({"created": good["created"] + 1}, {seal.FIELD: "0" * 64}):
        manifest.write_text(json.dumps({**good, **change}))
        assert "was saved by another host or user, or was changed" in saved.refused(image)
    (tmp_path / "trusting").mkdir()
    trusting = Counter(Cli(tmp_path / "trusting", f"{SETTINGS}\nforeign_checkpoints = true"))
    try:
        trusting.restore("two", image)
        assert trusting.bz.state("two")["status"] == "running"
    finally:
        trusting.bz.close()


def test_a_manifest_that_does_not_fit_is_one_line(bz, image, saved):
    manifest = image / "manifest.json"
    good = json.loads(manifest.read_text())
    shape = good["shape"]
    for change, words in (
        ({"version": "0.0.1"}, "was made by version 0.0.1"),
        ({"key": "0" * 32}, "was made with another VMM, firmware or CPU"),
        ({"shape": {**shape, "memory_mib": 1 << 19}}, "its memory_mib is 524288, wanted is 512"),
        ({"shape": {**shape, "vcpus": 64}}, "its vcpus is 64, wanted is 1"),
        ({"shape": {**shape, "vcpus": 0}}, "shape.vcpus: must be 1 to"),
        ({"shape": {**shape, "accelerator": "tcg"}}, "shape.kernel: expected an absolute path"),
        ({"shape": {**shape, "vmm": "other"}}, "no such VMM: other"),
        ({"terminal": True}, "process.terminal was true in the saved container"),
        ({"container": "../x"}, "container: not the id of a container"),
        ({"more": 1}, "'more': unknown"),
    ):
        manifest.write_text(json.dumps(resealed({**good, **change})))
        assert words in saved.refused(image), change
    manifest.write_text(json.dumps(good)[:100])
    assert "is damaged: manifest.json" in saved.refused(image)
    manifest.unlink()
    assert saved.refused(image).startswith(f"no checkpoint in {image}: manifest.json is missing")


def test_another_bundle_than_the_saved_one_is_named(bz, image, saved):
    other = bz.bundle("pause", name="other", annotations=BLOCK, root=WRITABLE)
    assert saved.refused(image, other) == (
        f"the checkpoint {image} does not fit: "
        "config.json differs from that of the saved container: process.args"
    )


def test_a_bundle_with_a_volume_is_refused(bz, image, saved):
    spec = json.loads((saved.bundle / "config.json").read_text())
    mounts = [*spec["mounts"], {"destination": "/v", "source": "/tmp", "type": "bind", "options": ["rbind"]}]
    other = bz.bundle("count", name="other", annotations=BLOCK, root=WRITABLE, mounts=mounts)
    assert "the bundle has volumes, but a checkpoint has none" in saved.refused(image, other)


@pytest.mark.parametrize("kind", checkpoint_dir.KINDS)
def test_a_file_that_is_not_what_was_written_is_named(image, saved, kind):
    (path,) = image.glob(f"bufferzone-{kind}-*")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert saved.refused(image) == f"the checkpoint {image} is damaged: {path.name} is not what was written"


def test_a_file_that_is_missing_is_named(image, saved):
    (path,) = image.glob("bufferzone-state-*")
    path.unlink()
    assert f"is damaged: {path.name}: No such file or directory" in saved.refused(image)


def test_an_agent_that_ends_before_it_takes_its_state_fails_the_restore_in_one_line(bz, image, saved):
    bz.odd_agent("sys.exit(3)")
    said = saved.refused(image)
    assert "failed (the host without a VM exit status 3) during: load the checkpoint" in said


def test_a_vmm_that_ends_while_its_vm_is_restored_is_told_by_its_end_and_not_by_its_channel(bz, image, saved):
    bz.odd_shim(
        "from bufferzone.errors import VmmError\nfrom bufferzone.vmm.host import machine\n"
        "def resume(vm):\n"
        "    vm.kill()\n"
        "    raise VmmError('cannot send: [Errno 32] Broken pipe', code='qmp-lost')\n"
        "machine.HostVm.resume = resume"
    )
    said = saved.refused(image)
    assert "was killed (SIGKILL) during: load the checkpoint" in said
    assert "pipe" not in said


def test_a_vmm_that_refuses_a_state_and_goes_on_is_quoted(bz, image, saved):
    bz.odd_shim(
        "from bufferzone.errors import VmmError\nfrom bufferzone.vmm.host import machine\n"
        "def load(vm, fd):\n"
        "    raise VmmError('QEMU refused migrate-incoming: not like this', code='qmp-refused')\n"
        "machine.HostVm.load = load"
    )
    said = saved.refused(image)
    assert "QEMU refused migrate-incoming: not like this" in said
    assert "did not answer" not in said


def test_a_vmm_that_writes_to_the_memory_as_it_loads_its_devices_is_no_damage(bz, image, saved):
    """KVM does: setting MSR_KVM_WALL_CLOCK_NEW has it write the time there (kvm_write_wall_clock)."""
    bz.odd_shim(
        "import os\nfrom bufferzone.storage import ram\nfrom bufferzone.vmm.host import machine\n"
        "copy, load, memory = ram.copy, machine.HostVm.load, []\n"
        "def watched(source, target):\n"
        "    memory.append(target)\n"
        "    return copy(source, target)\n"
        "def writing(vm, fd):\n"
        "    load(vm, fd)\n"
        "    os.pwrite(memory[0], b'time', 4096)\n"
        "ram.copy, machine.HostVm.load = watched, writing"
    )
    saved.restore("restored", image)
    assert bz.state("restored")["status"] == "running"


def test_a_state_that_is_none_fails_the_restore_and_says_so(bz, image, saved):
    bz.odd_shim(
        "import os\nfrom bufferzone.vmm.host import machine\nreal = machine.HostVm.load\n"
        "machine.HostVm.load = lambda vm, fd: real(vm, os.open('/bin/sh', os.O_RDONLY))"
    )
    assert saved.refused(image) == "the agent cannot restore: not the state of an agent"
