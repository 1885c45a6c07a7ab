"""Each VMM under the host's KVM, by the same checks: daily verbs, template, checkpoint, limits, end by force.

No distribution packages Firecracker: BUFFERZONE_FIRECRACKER names the program, see docs/vmms.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fakes import oci_layout
from host.conftest import TIMEOUT_S, how_started, podman, run
from vm.verbs import await_true

PROGRAM = os.environ.get("BUFFERZONE_FIRECRACKER", "")
pytestmark = pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm")
ALLOWED = Path("/etc/bufferzone/config.d/firecracker.toml")
#: what chooses each, with a root file system on a disk, which is all that Firecracker has
ANNOTATIONS = {
    "qemu": {"bufferzone.rootfs": "block"},
    "firecracker": {"bufferzone.vmm": "firecracker"},
}


class Driver:
    """A VMM; `words` have Podman choose it, `annotations` a bundle."""

    def __init__(self, name: str) -> None:
        self.name, self.annotations = name, ANNOTATIONS[name]
        self.words = [word for row in self.annotations.items() for word in ("--annotation", "=".join(row))]

    def start(self, name: str, image: str, *words: str) -> dict[str, str]:
        """Start a container that says `up` and sleeps; what `state` tells of it."""
        command = ("sh", "-c", "echo up; exec sleep 100000")
        podman("run", "-d", "--name", name, *self.words, *words, image, *command)
        return how_started(identity(name))

    def bundle(self, directory: Path, image: str, command: str, **annotations: str) -> Path:
        """A bundle of the image with `sh -c command`."""
        directory.mkdir()
        shutil.copytree(podman("image", "mount", image), directory / "rootfs", symlinks=True)
        run("bufferzone", "spec", "--bundle", str(directory))
        spec = json.loads((directory / "config.json").read_text())
        spec["process"] |= {"terminal": False, "args": ["sh", "-c", command]}
        spec["root"]["readonly"] = False
        spec["annotations"] = {**self.annotations, **annotations}
        (directory / "config.json").write_text(json.dumps(spec))
        return directory


@pytest.fixture(scope="module", params=ANNOTATIONS)
def driver(request):
    if request.param == "qemu":
        yield Driver("qemu")
        return
    if not os.path.isfile(PROGRAM):
        pytest.skip("needs BUFFERZONE_FIRECRACKER")
    run("bz", "setup", "--vmm", "firecracker", PROGRAM)
    ALLOWED.parent.mkdir(parents=True, exist_ok=True)
    ALLOWED.write_text('allow_annotations = ["vmm"]\n')
    yield Driver("firecracker")
    ALLOWED.unlink()


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """An image of Debian's packages, as this host has them: some thousand files."""
    made = oci_layout.of_packages(tmp_path_factory.mktemp("layout"), ["dash", "coreutils", "perl"])
    image = podman("pull", "--quiet", made)
    yield image
    podman("rmi", "--force", image)


firecracker_alone = pytest.mark.parametrize("driver", ["firecracker"], indirect=True)


def identity(name: str) -> str:
    id: str = json.loads(podman("inspect", name))[0]["Id"]
    return id


def templates() -> set[str]:
    """The keys of those that are there."""
    return {row["key"] for row in json.loads(run("bz", "template", "ls", "--json"))}


def vmm_of(id: str, driver: Driver) -> int:
    """The pid of the VMM of a container, which its shim recorded."""
    rows = json.loads(Path(f"/run/bufferzone/{id}/leftovers.json").read_text())["processes"]
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid, _ in rows}
    (pid,) = [pid for pid, name in names.items() if name.startswith(driver.name)]
    return int(pid)


def test_a_container_runs_takes_an_exec_is_logged_and_stops(driver, image):
    assert podman("run", "--rm", *driver.words, image, "echo", "hello") == "hello"
    facts = driver.start("daily", image, "--memory", "128m")
    assert facts["bufferzone.vmm"].startswith(f"{driver.name} ")
    assert (facts["bufferzone.accelerator"], facts["bufferzone.rootfs"]) == ("kvm", "block")
    await_true(lambda: podman("logs", "daily") == "up", "what it says", TIMEOUT_S)
    await_true(lambda: podman("exec", "daily", "cat", "/proc/1/comm") == "sleep", "its program", TIMEOUT_S)
    assert podman("exec", "daily", "cat", "/sys/fs/cgroup/memory.max") == str(128 << 20)
    assert facts["bufferzone.vmm"] in run("bz", "ps")
    podman("stop", "--time", "1", "daily")
    podman("rm", "daily")


def kept_images() -> set[tuple[str, int]]:
    """Those of root file systems, by the layers that they are of."""
    with os.scandir("/var/lib/bufferzone/roots") as entries:
        return {(entry.name.split(".")[0], entry.inode()) for entry in entries if entry.name != "lock"}


def test_a_debian_image_runs_and_its_layers_are_packed_once(driver, debian):
    driver.start("debian", debian)
    await_true(lambda: podman("logs", "debian") == "up", "what it says", TIMEOUT_S)
    kept = kept_images()
    assert kept
    look = "cat /etc/hosts; echo mine > /usr/bin/dash; exec perl -e 'print 6 * 7'"
    for name in ("first", "second"):
        said = podman("run", "--rm", "--hostname", name, *driver.words, debian, "sh", "-c", look)
        assert said.endswith("42")
        assert f"\t{name} " in said  # what Podman wrote before the start is this container's
    assert kept_images() == kept
    assert podman("exec", "debian", "sh", "-c", "exec wc -c < /usr/bin/dash") != "5"
    podman("stop", "--time", "1", "debian")
    podman("rm", "debian")


def test_the_next_start_is_from_a_template_and_a_clone_of_its_own(driver, image):
    before = templates()
    if (facts := driver.start("warm", image))["bufferzone.start"] != "warm":
        podman("rm", "--force", "--time", "0", "warm")
        # its maker works in the background, and gives way to whoever starts
        await_true(lambda: templates() > before, "the template", TIMEOUT_S)
        facts = driver.start("warm", image)
    assert facts["bufferzone.start"] == "warm", facts
    facts = driver.start("other", image)
    assert facts["bufferzone.start"] == "warm", facts
    ids = [podman("exec", name, "cat", "/proc/sys/kernel/random/boot_id") for name in ("warm", "other")]
    assert ids[0] != ids[1]
    now = int(podman("exec", "warm", "date", "+%s"))
    assert abs(now - time.time()) < TIMEOUT_S
    podman("rm", "--force", "--time", "0", "warm", "other")


COUNTER = "i=0; while :; do i=$((i+1)); echo $i >/dev/shm/n; sleep 0.2; done"

# not before it has counted, nor between the end of the old number and the new one
READ = 'until n=$(cat /dev/shm/n) && [ "$n" ]; do sleep 0.1; done 2>/dev/null; echo $n'


def in_background(log: Path, *words: str) -> None:
    """A command whose container keeps its streams after it: a file, where a pipe would have no end."""
    with log.open("w") as streams:
        status = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=streams, stderr=streams, timeout=TIMEOUT_S, check=False
        ).returncode
    assert status == 0, (words, status, log.read_text()[-2000:])


def number(root: Path, id: str) -> int:
    """Where a counter is."""
    return int(run("bufferzone", "--root", str(root), "exec", id, "sh", "-c", READ))


def test_a_container_is_saved_goes_on_is_restored_and_forked(driver, image, tmp_path):
    root, saved = tmp_path / "root", tmp_path / "saved"
    root.mkdir()
    bundle = driver.bundle(tmp_path / "bundle", image, COUNTER)
    verb = ("bufferzone", "--root", str(root))
    in_background(tmp_path / "log", *verb, "run", "--detach", "--bundle", str(bundle), "one")
    before = number(root, "one")
    run(*verb, "checkpoint", "--leave-running", "--image-path", str(saved), "one")
    assert number(root, "one") > before  # by another connection: saving ends the first
    in_background(
        tmp_path / "log", *verb, "restore", "-d", "--image-path", str(saved), "--bundle", str(bundle), "two"
    )
    assert number(root, "two") > before
    in_background(tmp_path / "log", "bz", "--root", str(root), "fork", "two", "three")
    assert number(root, "three") > before
    run(*verb, "checkpoint", "--image-path", str(tmp_path / "again"), "two")
    assert json.loads(run(*verb, "state", "two"))["status"] == "stopped"
    for id in ("one", "two", "three"):
        run(*verb, "delete", "--force", id)
    assert not list(Path("/var/lib/bufferzone/disks").iterdir())


def test_a_killed_vmm_is_told_and_leaves_nothing(driver, image):
    driver.start("killed", image)
    id = identity("killed")
    with open(f"/run/bufferzone/{id}/shim.log") as log:  # before its end, after which Podman removes it
        os.kill(vmm_of(id, driver), signal.SIGKILL)
        podman("wait", "killed")
        assert "was killed (SIGKILL)" in log.read()
    podman("rm", "--force", "killed")
    assert not Path(f"/run/bufferzone/{id}").exists()
    assert id not in Path("/proc/mounts").read_text()


@firecracker_alone
def test_a_volume_is_refused_by_its_path(driver, image, tmp_path):
    words = ["podman", "--runtime", "bufferzone", "run", "--rm", *driver.words, "-v", f"{tmp_path}:/v"]
    done = subprocess.run([*words, image, "true"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode != 0
    assert f"Firecracker cannot share files of the host with a VM: {tmp_path}" in done.stderr


def fetched() -> tuple[str, float]:
    """What port 8099 serves as soon as it does, and the seconds that this took."""
    deadline = time.monotonic() + 60
    while True:
        began = time.monotonic()
        done = run("python3", "-c", _FETCH)
        if "error" not in done or began > deadline:
            return done, time.monotonic() - began


def test_a_published_port_answers(driver, image):
    server = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp"
    podman("run", "-d", "--name", "port", *driver.words, "-p", "8099:80", image, "sh", "-c", server)
    assert fetched()[0] == "7 True"
    podman("rm", "--force", "--time", "0", "port")


def test_a_disk_is_read_no_faster_than_its_limit(driver, image, tmp_path):
    limit = {"bufferzone.disk_kib_per_s": "512"}
    bundle = driver.bundle(tmp_path / "bundle", image, "exec sleep 100000", **limit)
    (bundle / "rootfs" / "noise").write_bytes(os.urandom(4 << 20))  # nothing packs it smaller
    (tmp_path / "root").mkdir()
    verb = ("bufferzone", "--root", str(tmp_path / "root"))
    in_background(tmp_path / "log", *verb, "run", "--detach", "--bundle", str(bundle), "slow")
    began = time.monotonic()
    assert run(*verb, "exec", "slow", "sh", "-c", "cat /noise | wc -c") == str(4 << 20)
    assert time.monotonic() - began > 4  # 8 s; the first second's worth may come at once
    run(*verb, "delete", "--force", "slow")


@firecracker_alone
def test_a_guest_sends_no_faster_than_its_limit(driver, image):
    server = "dd if=/dev/zero of=/tmp/index.html bs=64k count=32; exec httpd -f -p 80 -h /tmp"
    words = ("--annotation", "bufferzone.network_kib_per_s=256", "-p", "8099:80")
    podman("run", "-d", "--name", "slow", *driver.words, *words, image, "sh", "-c", server)
    done, took_s = fetched()
    assert done.startswith(f"{32 << 16} ")
    assert took_s > 4  # 8 s; the first second's worth may come at once
    podman("rm", "--force", "--time", "0", "slow")


_FETCH = """
import urllib.request
try:
    with urllib.request.urlopen("http://127.0.0.1:8099/index.html", timeout=60) as answer:
        text = answer.read().decode()
    print(len(text), "served" in text)
except OSError as error:
    print("error", error)
"""
