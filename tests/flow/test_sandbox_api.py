"""A pod by containerd's Sandbox API: the real shim, started as containerd does, asked as containerd does."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bufferzone import state
from bufferzone.errors import CallerError, ExistsError, NotFoundError, StateError
from bufferzone.wire import metrics, sandbox, shim, task
from bufferzone.wire.proto import Any_
from flow.cli import DEADLINE_S, Cli, needs_host
from flow.shim_client import Shim, bz
from flow.test_join import netns
from vm.verbs import await_end

pytestmark = needs_host

__all__ = ["bz", "netns"]  # fixtures
ID = "pod"


class Pod(Shim):
    """A shim that was started in `bundle`, which has no config.json; its caller has a connection to it."""

    def __init__(self, cli: Cli) -> None:
        bundle = cli.base / "pod-bundle"
        bundle.mkdir()
        (bundle / "rootfs").mkdir()
        super().__init__(cli, ID, bundle)

    def ask(self, method, request=None, service=sandbox.SERVICE, sock=None):
        """The same, of a pod where nothing else is said."""
        return super().ask(method, request or sandbox.SandboxRequest(sandbox_id=ID), service, sock)

    def create(self, netns: str = "", **config) -> None:
        linux = sandbox.LinuxPod(**config.pop("linux", {}))
        told = sandbox.PodConfig(hostname="the-pod", linux=linux, **config)
        options = Any_(type_url=sandbox.POD_CONFIG_URL, value=told.encode())
        wish = sandbox.CreateSandboxRequest(
            sandbox_id=ID, bundle_path=str(self.bundle), options=options, netns_path=netns
        )
        self.ask("CreateSandbox", wish)

    def bundle_of(self, id: str, *args: str, pid: int, **more) -> Path:
        """Of one of the pod's containers, as the CRI makes it."""
        kinds = [{"type": kind} for kind in ("pid", "mount")]
        shared = [{"type": kind, "path": f"/proc/{pid}/ns/{kind}"} for kind in ("ipc", "uts")]
        shared.append({"type": "network", "path": f"/proc/{pid}/ns/net"})
        notes = {
            "io.kubernetes.cri.sandbox-id": ID,
            "io.kubernetes.cri.container-type": "container",
        }
        return self.cli.bundle(
            *args, name=id, hostname="", annotations=notes, linux={"namespaces": kinds + shared}, **more
        )

    def container(self, id: str, *args: str, pid: int, **more) -> None:
        """One of the pod's, which runs, and writes to a file."""
        bundle = self.bundle_of(id, *args, pid=pid, **more)
        out = f"file://{self.cli.base}/{id}.out"
        wish = task.CreateTaskRequest(id=id, bundle=str(bundle), stdout=out)
        self.ask("Create", wish, task.SERVICE_V3)
        self.ask("Start", task.StartRequest(id=id), task.SERVICE_V3)

    def await_end(self, id: str) -> int:
        return self.ask("Wait", task.WaitRequest(id=id), task.SERVICE_V3).exit_status

    def out(self, id: str) -> str:
        return (self.cli.base / f"{id}.out").read_text()


@pytest.fixture
def asked(bz):
    """A shim that was started, and told nothing."""
    pod = Pod(bz)
    yield pod
    pod._sock.close()


@pytest.fixture
def pod(asked, netns):
    """A pod that runs, without a container; its `pid` is what stands for it."""
    asked.create(netns)
    asked.pid = asked.ask("StartSandbox").pid
    return asked


def test_a_pod_has_its_vm_before_its_first_container_and_no_image(pod, netns):
    status = pod.ask("SandboxStatus", sandbox.SandboxStatusRequest(sandbox_id=ID, verbose=True))
    assert (status.state, status.pid) == ("SANDBOX_READY", pod.pid)
    assert status.created_at.seconds
    assert '"accelerator"' in status.info["info"]
    assert os.stat(f"/proc/{pod.pid}/ns/net").st_ino == os.stat(netns).st_ino
    platform = pod.ask("Platform").platform
    assert (platform.os, platform.architecture) == ("linux", "amd64")
    pod.ask("PingSandbox")
    assert pod.cli.state(ID)["status"] == "running"
    assert not os.listdir(pod.bundle / "rootfs")  # containerd takes it away as an empty directory


def test_its_containers_share_names_memory_and_what_containerd_gives_no_more(pod):
    script = "cat /etc/hostname /etc/resolv.conf; echo shared >/dev/shm/file; cat /proc/sys/kernel/hostname"
    pod.container("one", "sh", "-c", script, pid=pod.pid)
    assert pod.await_end("one") == 0
    resolver = (pod.bundle / "resolv.conf").read_text()
    assert pod.out("one") == f"the-pod\n{resolver}the-pod\n"
    assert len(resolver.split())
    pod.container("two", "cat", "/dev/shm/file", pid=pod.pid)
    assert (pod.await_end("two"), pod.out("two")) == (0, "shared\n")


def test_a_pod_is_measured_as_a_whole(pod):
    pod.container("one", "pause", pid=pod.pid)
    told = pod.ask("SandboxMetrics").metrics
    used = metrics.Metrics.decode(told.data.value)
    assert (told.id, told.data.type_url) == (ID, metrics.TYPE_URL)
    assert used.cpu.usage_usec > 0
    facts = json.loads(pod.ask("Info", None, shim.SERVICE).json)
    assert used.memory.usage_limit == facts["memory_mib"] << 20  # nobody has more than the VM


def test_a_volume_of_the_container_is_not_covered_by_what_the_pod_gives(pod, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("10.0.0.1 somewhere\n")
    mounts = [{"destination": "/etc/hosts", "type": "bind", "source": str(hosts), "options": ["bind"]}]
    pod.container("one", "cat", "/etc/hosts", pid=pod.pid, mounts=mounts)
    assert (pod.await_end("one"), pod.out("one")) == (0, hosts.read_text())


def test_stop_ends_containers_and_vm_and_the_shim_tells_how_until_it_is_shut_down(pod):
    pod.container("one", "pause", pid=pod.pid)
    helper = pod.cli.helper(ID)
    ended = {}

    def wait():
        with pod.connect() as sock:
            ended["pod"] = pod.ask("WaitSandbox", sock=sock).exit_status

    waiting = threading.Thread(target=wait)
    waiting.start()
    pod.ask("StopSandbox", sandbox.StopSandboxRequest(sandbox_id=ID, timeout_secs=1))
    waiting.join(DEADLINE_S)
    assert ended == {"pod": 137}
    await_end(helper)
    await_end(pod.pid)
    assert pod.await_end("one") == 137
    assert pod.ask("Delete", task.DeleteRequest(id="one"), task.SERVICE_V3).exit_status == 137
    pod.ask("StopSandbox", sandbox.StopSandboxRequest(sandbox_id=ID))
    status = pod.ask("SandboxStatus", sandbox.SandboxStatusRequest(sandbox_id=ID))
    assert (status.state, status.pid) == ("SANDBOX_NOTREADY", 0)
    assert status.exited_at.to_ns() >= status.created_at.to_ns()
    pod.ask("Shutdown", task.ShutdownRequest(id="one"), task.SERVICE_V3)  # a pod outlives its containers
    pod.run("delete", "one")
    pod.ask("ShutdownSandbox")
    pod.await_gone()
    assert pod.cli.left() == []
    assert not os.path.exists(pod.address)


def test_a_pod_whose_vm_is_killed_has_ended_and_can_be_shut_down(pod):
    pod.container("one", "pause", pid=pod.pid)
    os.kill(pod.cli.helper(ID), 9)
    assert pod.ask("WaitSandbox").exit_status == 137
    assert pod.await_end("one") == 137
    status = pod.ask("SandboxStatus", sandbox.SandboxStatusRequest(sandbox_id=ID))
    assert status.state == "SANDBOX_NOTREADY"
    pod.ask("StopSandbox", sandbox.StopSandboxRequest(sandbox_id=ID))
    pod.ask("ShutdownSandbox")
    pod.await_gone()


def test_other_names_and_second_calls_are_errors_of_their_own(pod, netns):
    for method in ("WaitSandbox", "Platform", "PingSandbox", "StartSandbox"):
        with pytest.raises(NotFoundError, match="sandbox other does not exist"):
            pod.ask(method, sandbox.SandboxRequest(sandbox_id="other"))
    with pytest.raises(ExistsError):
        pod.create(netns)
    with pytest.raises(StateError):
        pod.ask("StartSandbox")


def test_before_the_pod_is_asked_for_there_is_nothing_to_ask(asked):
    with asked.connect():
        pass  # somebody looks whether it listens
    for method in ("SandboxStatus", "WaitSandbox", "StartSandbox"):
        with pytest.raises(StateError, match="no pod has been asked for"):
            asked.ask(method)
    with pytest.raises(StateError):
        asked.ask("Connect", task.ConnectRequest(id=ID), task.SERVICE_V3)
    asked.ask("ShutdownSandbox")
    asked.await_gone()
    assert asked.cli.left() == []


def test_the_nodes_network_is_refused_by_one_line_and_nothing_is_left(asked):
    with pytest.raises(CallerError, match="a VM cannot use the host's network"):
        asked.create()
    asked.ask("ShutdownSandbox")
    asked.await_gone()
    assert asked.cli.left() == []


def test_a_description_that_is_none_is_refused_and_the_shim_ends(asked):
    options = Any_(type_url=sandbox.POD_CONFIG_URL, value=b"\xff")
    wish = sandbox.CreateSandboxRequest(sandbox_id=ID, bundle_path=str(asked.bundle), options=options)
    with pytest.raises(CallerError, match=r"^runtime\.v1\.PodSandboxConfig: "):
        asked.ask("CreateSandbox", wish)
    asked.ask("ShutdownSandbox")
    asked.await_gone()
    assert asked.cli.left() == []


def test_annotations_of_a_pods_author_count_only_where_they_are_ours(asked, netns):
    notes = {"bufferzone.vcpus": "0", "io.kubernetes.cri.sandbox-memory": "1", "other": "x"}
    with pytest.raises(CallerError, match=r"annotations\.bufferzone\.vcpus"):
        asked.create(netns, annotations=notes)
    text = (asked.bundle / "config.json").read_text()
    assert "other" not in text
    assert "sandbox-memory" not in text


def test_a_shim_that_was_killed_is_cleaned_up_by_delete(pod):
    owner = state.owner_pid(str(pod.cli.root / ID))
    os.kill(owner, 9)
    pod.await_gone()
    await_end(pod.pid)
    pod.run("delete", ID)
    assert pod.cli.left() == []
