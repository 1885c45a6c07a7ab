"""Containers in one network namespace are containers of one VM: what they share, what not, who goes first."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from vm.leftovers import Watch, cgroups_with
from vm.netns import World
from vm.verbs import Runtime, bundle, config, kill

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun"),
    pytest.mark.skipif(not shutil.which("tc"), reason="iproute2 is not installed"),
]

MARK = f"bzjoined-{os.getpid()}"
RAW = ["CAP_NET_RAW", "CAP_NET_BIND_SERVICE"]
PING = ("/bin/busybox", "ping", "-c", "2", "10.213.7.1")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    runtime = Runtime(tmp_path_factory.mktemp("joined") / "root")
    watch = Watch(runtime.root, mark=MARK)
    yield runtime
    runtime.close()
    watch.assert_nothing_left(60)


@pytest.fixture
def world(runtime):
    with World() as world:
        world.link("eth0", "10.213.7.2/24")
        yield world
        runtime.close()
        assert world.left() == []
    assert [path.name for path in runtime.root.iterdir()] in ([], ["kvm-probe.json"])


def made(directory: Path, world: World, command: str = "exec sleep 1000", **changes: Any) -> Path:
    """A bundle in the world's namespace with a cgroup of its own; `resources` go where they belong."""
    process = {**config(command)["process"], **changes.pop("process", {})}
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), RAW)
    linux = {**world.linux(), "cgroupsPath": f"/{MARK}-{directory.name}"}
    linux["resources"] = changes.pop("resources", {})
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        *changes.pop("mounts", []),
    ]
    return bundle(directory, process=process, linux=linux, mounts=mounts, **changes)


def reaches_its_gateway(runtime: Runtime, id: str) -> bool:
    return "2 packets received" in runtime.ok("exec", id, *PING).out


def entries(runtime: Runtime) -> list[str]:
    return [path.name for path in runtime.root.iterdir() if path.name.startswith("@net-")]


def test_two_containers_share_a_vm_and_its_network_and_nothing_else(runtime, world, tmp_path):
    serve = "echo first >/tmp/page; busybox httpd -p 127.0.0.1:80 -h /tmp; echo up; exec sleep 1000"
    first = runtime.run("first", made(tmp_path / "first", world, serve, hostname="one"))
    first.expect("up")
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("from the host\n")
    mount = {"destination": "/mnt", "type": "bind", "source": str(volume), "options": ["rbind"]}
    limits = [{"type": "RLIMIT_NOFILE", "hard": 77, "soft": 77}]
    directory = made(
        tmp_path / "second", world, hostname="two", mounts=[mount], process={"rlimits": limits, "cwd": "/tmp"}
    )
    (directory / "rootfs" / "mnt").mkdir()
    (directory / "rootfs" / "mine").touch()
    second = runtime.run("second", directory)
    assert runtime.shim_pid("first") == runtime.shim_pid("second")
    assert reaches_its_gateway(runtime, "second")
    assert reaches_its_gateway(runtime, "first")
    look = "busybox wget -q -O - http://127.0.0.1/page; busybox hostname; ulimit -n; cat /mnt/file"
    look += "; ls /mine /tmp"
    seen = runtime.ok("exec", "second", "/bin/sh", "-c", look).out.split("\n")
    assert seen == ["first", "two", "77", "from the host", "/mine", "", "/tmp:", ""]
    assert "inet 10.213.7.2/24" in runtime.ok("exec", "second", "/bin/busybox", "ip", "address").out
    table = runtime.ok("exec", "second", "/bin/ps").out
    assert "httpd" not in table
    assert runtime.ok("exec", "first", "/bin/busybox", "hostname").out == "one\n"
    assert len(json.loads(runtime.ok("ps", "--format", "json", "second").out)) == 1
    assert second.pid in _processes_of(f"{MARK}-second")
    assert second.pid not in _processes_of(f"{MARK}-first")
    ids = [row["id"] for row in json.loads(runtime.ok("list", "--format", "json").out)]
    assert ids == ["first", "second"]
    runtime.ok("kill", "second", "KILL")
    assert second.wait() == 137
    assert runtime.status("first") == "running"
    runtime.ok("delete", "second")
    assert cgroups_with(f"{MARK}-second") == []
    assert reaches_its_gateway(runtime, "first")
    runtime.ok("kill", "first", "KILL")
    assert first.wait() == 137
    assert entries(runtime) == [], "the VM has ended with its last container"


def _processes_of(name: str) -> set[int]:
    texts = [Path(path, "cgroup.procs").read_text() for path in cgroups_with(name)]
    return {int(word) for text in texts for word in text.split()}


def test_the_first_may_go_first_and_come_back(runtime, world, tmp_path):
    first = runtime.run("first", made(tmp_path / "first", world))
    shim = runtime.shim_pid("first")
    second = runtime.run("second", made(tmp_path / "second", world))
    runtime.ok("delete", "--force", "first")
    assert first.wait() == 137
    assert not (runtime.root / "first").exists()
    assert reaches_its_gateway(runtime, "second")
    directory = tmp_path / "again"
    again = runtime.run("first", made(directory, world, "echo it is new; exec sleep 1000"))
    again.expect("it is new")
    assert runtime.shim_pid("first") == shim
    runtime.ok("delete", "--force", "second")
    assert second.wait() == 137
    assert reaches_its_gateway(runtime, "first")
    assert (runtime.root / "first" / "shim.log").stat().st_size
    runtime.ok("delete", "--force", "first")
    assert again.wait() == 137


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_a_killed_shim_is_told_of_both_and_cleaned_up_by_either(runtime, world, tmp_path, order):
    containers = {id: runtime.run(id, made(tmp_path / id, world)) for id in ("first", "second")}
    pids = runtime.helper_pids("second")
    assert pids == runtime.helper_pids("first")
    kill(pids["shim"])
    for id, container in containers.items():
        assert container.wait() == 137
        assert "the shim that ran its VM was killed" in container.errors()
        assert runtime.state(id)["status"] == "stopped"
    for id in order:
        runtime.ok("delete", "--force", id)
    assert entries(runtime) == []


def test_the_first_was_deleted_when_the_shim_is_killed(runtime, world, tmp_path):
    first = runtime.run("first", made(tmp_path / "first", world))
    second = runtime.run("second", made(tmp_path / "second", world))
    runtime.ok("delete", "--force", "first")
    first.wait()
    kill(runtime.shim_pid("second"))
    assert second.wait() == 137
    assert runtime.status("second") == "stopped"
    runtime.ok("delete", "--force", "second")


def test_what_a_killed_shim_left_does_not_lead_anywhere(runtime, world, tmp_path):
    dead = runtime.run("dead", made(tmp_path / "dead", world))
    kill(runtime.shim_pid("dead"))
    assert dead.wait() == 137
    assert len(entries(runtime)) == 1
    runtime.run("alive", made(tmp_path / "alive", world))
    runtime.ok("delete", "--force", "dead")
    assert len(entries(runtime)) == 1, "it leads to the living by now"
    assert reaches_its_gateway(runtime, "alive")
    runtime.run("joined", made(tmp_path / "joined", world))
    assert runtime.shim_pid("joined") == runtime.shim_pid("alive")


def test_limits_and_pauses_are_each_containers_own(runtime, world, tmp_path):
    first = runtime.run("first", made(tmp_path / "first", world))
    hog = "echo up; cat; exec busybox tail -c 100m /dev/zero"
    directory = made(tmp_path / "second", world, hog, resources={"memory": {"limit": 24 << 20}})
    second = runtime.run("second", directory)
    second.expect("up")
    assert second.wait() == 137, "out of memory, in a VM that has much more"
    assert runtime.status("first") == "running"
    assert reaches_its_gateway(runtime, "first")
    third = runtime.run("third", made(tmp_path / "third", world))
    runtime.ok("pause", "third")
    assert (runtime.status("third"), runtime.status("first")) == ("paused", "running")
    assert reaches_its_gateway(runtime, "first")
    runtime.ok("resume", "third")
    runtime.ok("update", "--memory", "64m", "third")
    assert runtime.ok("exec", "third", "/bin/sh", "-c", "echo still").out == "still\n"
    line = runtime.verb("update", "--cpuset-cpus", "0", "third").line
    assert "set these limits on that container" in line
    line = runtime.verb("update", "--memory", "8g", "third").line
    assert "the VM has 512 MiB" in line
    assert (
        "cannot checkpoint" in runtime.verb("checkpoint", "--image-path", str(tmp_path / "c"), "first").line
    )
    for id in ("first", "second", "third"):
        runtime.ok("delete", "--force", id)
    assert (first.wait(), third.wait()) == (137, 137)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"annotations": {"bufferzone.vcpus": "2"}}, "its vcpus is 1, wanted is 2"),
        (
            {"annotations": {"bufferzone.memory": "768"}},
            "its memory_mib is 512, wanted is 768",
        ),
        ({"annotations": {"bufferzone.rootfs": "block"}}, "its rootfs is virtiofs, wanted is block"),
        ({"annotations": {"bufferzone.egress": "none"}}, "its egress is not set, wanted is none"),
        ({"resources": {"memory": {"limit": 4 << 30}}}, "cannot set the memory limit to 4294967296"),
        ({"resources": {"cpu": {"cpus": "0"}}}, "on the host they hold for its whole VM"),
    ],
)
def test_what_the_vm_does_not_have_is_refused_in_one_line(held, runtime, tmp_path, changes, text):
    line = runtime.try_create("second", made(tmp_path / "second", held, **changes)).line
    assert "cannot run in the VM of container first, whose network it names: " in line
    assert text in line
    assert not (runtime.root / "second").exists()
    assert runtime.status("first") == "running"


@pytest.fixture(scope="module")
def held(runtime, tmp_path_factory):
    """A world whose namespace is that of a running container, `first`."""
    with World() as world:
        runtime.run("first", made(tmp_path_factory.mktemp("held") / "first", world))
        yield world
        runtime.ok("delete", "--force", "first")


def test_nobody_joins_a_vm_whose_root_file_system_is_on_a_disk(runtime, world, tmp_path):
    block = {"bufferzone.rootfs": "block"}
    runtime.run("disk", made(tmp_path / "disk", world, annotations=block))
    line = runtime.try_create("second", made(tmp_path / "second", world)).line
    assert "its root file system is on a disk, so nothing can be shared with it" in line
    assert reaches_its_gateway(runtime, "disk")
