"""Firecracker under the host's KVM: taken in, then the daily verbs, a template, an end by force.

No distribution packages it: BUFFERZONE_FIRECRACKER names the program, see docs/vmms.md.
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

from host.conftest import TIMEOUT_S, how_started, podman, run
from vm.verbs import await_true

PROGRAM = os.environ.get("BUFFERZONE_FIRECRACKER", "")
pytestmark = pytest.mark.skipif(
    not os.path.isfile(PROGRAM) or not os.path.exists("/dev/kvm"),
    reason="needs BUFFERZONE_FIRECRACKER and /dev/kvm",
)
ALLOWED = Path("/etc/bufferzone/config.d/firecracker.toml")
IN_FIRECRACKER = ("--annotation", "bufferzone.vmm=firecracker")


@pytest.fixture(scope="module", autouse=True)
def taken_in():
    run("bz", "setup", "--vmm", "firecracker", PROGRAM)
    ALLOWED.parent.mkdir(parents=True, exist_ok=True)
    ALLOWED.write_text('allow_annotations = ["vmm"]\n')
    yield
    ALLOWED.unlink()


def start(name: str, image: str, *words: str) -> dict[str, str]:
    """Start a container; what `state` tells of it."""
    podman("run", "-d", "--name", name, *IN_FIRECRACKER, *words, image, "sleep", "100000")
    return how_started(identity(name))


def identity(name: str) -> str:
    id: str = json.loads(podman("inspect", name))[0]["Id"]
    return id


def templates() -> set[str]:
    """The keys of those that are there."""
    return {row["key"] for row in json.loads(run("bz", "template", "ls", "--json"))}


def vmm_of(id: str) -> int:
    """The pid of the Firecracker of a container, which its shim recorded."""
    rows = json.loads(Path(f"/run/bufferzone/{id}/leftovers.json").read_text())["processes"]
    (pid,) = [pid for pid, _ in rows if Path(f"/proc/{pid}/comm").read_text() == "firecracker\n"]
    return int(pid)


def test_a_container_runs_takes_an_exec_and_stops(image):
    assert podman("run", "--rm", *IN_FIRECRACKER, image, "echo", "hello") == "hello"
    facts = start("fire", image, "--memory", "128m")
    assert facts["bufferzone.vmm"].startswith("firecracker 1.12")
    assert (facts["bufferzone.accelerator"], facts["bufferzone.rootfs"]) == ("kvm", "block")
    assert podman("exec", "fire", "cat", "/proc/1/comm") == "sleep"
    assert podman("exec", "fire", "cat", "/sys/fs/cgroup/memory.max") == str(128 << 20)
    assert "firecracker" in run("bz", "ps")
    podman("stop", "--time", "1", "fire")
    podman("rm", "fire")


def test_the_next_start_is_from_a_template_and_a_clone_of_its_own(image):
    before = templates()
    if (facts := start("warm", image))["bufferzone.start"] != "warm":
        podman("rm", "--force", "--time", "0", "warm")
        # its maker works in the background, and gives way to whoever starts
        await_true(lambda: templates() > before, "the template", TIMEOUT_S)
        facts = start("warm", image)
    assert facts["bufferzone.start"] == "warm", facts
    facts = start("other", image)
    assert facts["bufferzone.start"] == "warm", facts
    ids = [podman("exec", name, "cat", "/proc/sys/kernel/random/boot_id") for name in ("warm", "other")]
    assert ids[0] != ids[1]
    now = int(podman("exec", "warm", "date", "+%s"))
    assert abs(now - time.time()) < TIMEOUT_S
    podman("rm", "--force", "--time", "0", "warm", "other")


COUNTER = "i=0; while :; do i=$((i+1)); echo $i >/dev/shm/n; sleep 0.2; done"

# not before it has counted, nor between the end of the old number and the new one
READ = 'until n=$(cat /dev/shm/n) && [ "$n" ]; do sleep 0.1; done 2>/dev/null; echo $n'


def number(root: Path, id: str) -> int:
    """Where a counter is."""
    return int(run("bufferzone", "--root", str(root), "exec", id, "sh", "-c", READ))


def test_a_container_is_saved_goes_on_is_restored_and_forked(image, tmp_path):
    bundle, root, saved = tmp_path / "bundle", tmp_path / "root", tmp_path / "saved"
    bundle.mkdir()
    root.mkdir()
    shutil.copytree(podman("image", "mount", image), bundle / "rootfs", symlinks=True)
    run("bufferzone", "spec", "--bundle", str(bundle))
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["sh", "-c", COUNTER]}
    spec["root"]["readonly"] = False
    (bundle / "config.json").write_text(json.dumps(spec | {"annotations": {"bufferzone.vmm": "firecracker"}}))
    verb = ("bufferzone", "--root", str(root))
    in_background = ("sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh")  # a detached one keeps its streams
    run(*in_background, *verb, "run", "--detach", "--bundle", str(bundle), "one")
    before = number(root, "one")
    run(*verb, "checkpoint", "--leave-running", "--image-path", str(saved), "one")
    assert number(root, "one") > before  # by another connection: saving ends the first
    run(*in_background, *verb, "restore", "-d", "--image-path", str(saved), "--bundle", str(bundle), "two")
    assert number(root, "two") > before
    run(*in_background, "bz", "--root", str(root), "fork", "two", "three")
    assert number(root, "three") > before
    run(*verb, "checkpoint", "--image-path", str(tmp_path / "again"), "two")
    assert json.loads(run(*verb, "state", "two"))["status"] == "stopped"
    for id in ("one", "two", "three"):
        run(*verb, "delete", "--force", id)
    assert not list(Path("/var/lib/bufferzone/disks").iterdir())


def test_a_killed_firecracker_is_told_and_leaves_nothing(image):
    start("killed", image)
    id = identity("killed")
    with open(f"/run/bufferzone/{id}/shim.log") as log:  # before its end, after which Podman removes it
        os.kill(vmm_of(id), signal.SIGKILL)
        podman("wait", "killed")
        assert "was killed (SIGKILL)" in log.read()
    podman("rm", "--force", "killed")
    assert not Path(f"/run/bufferzone/{id}").exists()
    assert id not in Path("/proc/mounts").read_text()


def test_a_volume_is_refused_by_its_path(image, tmp_path):
    words = ["podman", "--runtime", "bufferzone", "run", "--rm", *IN_FIRECRACKER, "-v", f"{tmp_path}:/v"]
    done = subprocess.run([*words, image, "true"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode != 0
    assert f"Firecracker cannot share files of the host with a VM: {tmp_path}" in done.stderr


def test_a_published_port_answers(image):
    server = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp"
    podman("run", "-d", "--name", "port", *IN_FIRECRACKER, "-p", "8099:80", image, "sh", "-c", server)
    deadline = time.monotonic() + 60
    while True:
        done = run("python3", "-c", _FETCH)
        if done == "served" or time.monotonic() > deadline:
            break
    assert done == "served"
    podman("rm", "--force", "--time", "0", "port")


_FETCH = """
import urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:8099/index.html", timeout=30).read().decode())
except OSError as error:
    print(error)
"""
