"""Pods whose containerd, shim or VM is killed: what the kubelet sees, and that it can go on.

The daemon is the module's own: what other tests started is not to end with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from vm import cri_messages as m  # noqa: E402
from vm.containerd import needs_containerd  # noqa: E402
from vm.cri import NAMESPACE, Cri, PodContainer, PodSandbox, serving  # noqa: E402
from vm.verbs import Runtime, await_end, await_true, kill  # noqa: E402

pytestmark = [
    pytest.mark.vm,
    needs_containerd,
    pytest.mark.skipif(not shutil.which("bridge", path="/usr/lib/cni"), reason="needs CNI's plug-ins"),
]

ROOT = Path("/run/bufferzone-containerd") / NAMESPACE
SLEEP = ("sleep", "1000")
#: ends, with a status, when the file comes
UNTIL = "while ! test -e /flags/{0}; do sleep 0.1; done; echo saw {0}; exit {1}"


@pytest.fixture(scope="module", params=["pause", "shim"])
def cri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    """Pods with a pause image, and by the Sandbox API."""
    with serving(tmp_path_factory.mktemp("cri"), request.param) as client:
        yield client


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def helpers(pod: PodSandbox) -> dict[str, int]:
    """Pids of its shim, VMM and the others."""
    return Runtime(ROOT).helper_pids(pod.id)


def await_exited(container: PodContainer) -> m.ContainerStatus:
    await_true(lambda: container.status().state == m.EXITED, "its end")
    return container.status()


def await_not_ready(pod: PodSandbox) -> None:
    await_true(lambda: pod.status().state == m.NOTREADY, "the pod to be NotReady")


def test_a_containerd_that_is_killed_finds_all_as_it_is_when_it_comes_back(cri: Cri, flags: Path) -> None:
    mounts = [m.Mount(container_path="/flags", host_path=str(flags))]
    with cri.pod() as pod:
        stays = pod.start("stays", *SLEEP)
        meanwhile = pod.start("meanwhile", "sh", "-c", UNTIL.format("one", 3), mounts=mounts)
        later = pod.start("later", "sh", "-c", UNTIL.format("two", 4), mounts=mounts)
        boot_id = stays.out("cat", "/proc/sys/kernel/random/boot_id")
        shim = helpers(pod)["shim"]
        cri.daemon.kill()
        (flags / "one").touch()
        await_true(lambda: _init_is_gone(pod, meanwhile), "its end in the guest")
        cri.daemon.start()
        await_true(lambda: _serves(cri), "containerd to serve the CRI")
        assert (pod.status().state, helpers(pod)["shim"]) == (m.READY, shim)
        assert await_exited(meanwhile).exit_code == 3
        assert stays.status().state == m.RUNNING
        assert stays.out("cat", "/proc/sys/kernel/random/boot_id") == boot_id
        (flags / "two").touch()
        assert await_exited(later).exit_code == 4
        assert later.log() == [("stdout", "saw two")]
        again = pod.start("meanwhile", "true", attempt=1)
        assert await_exited(again).exit_code == 0
        stays.stop()
        assert await_exited(stays).exit_code == 137


def _serves(cri: Cri) -> bool:
    """Whether it answers: a daemon that has just begun refuses, and the kubelet asks again."""
    try:
        cri.call("ListPodSandbox", m.ListPods())
    except grpc.RpcError as error:
        if error.details() != "server is not initialized yet":
            raise
        return False
    return True


def _init_is_gone(pod: PodSandbox, container: PodContainer) -> bool:
    """Whether the shim knows of a container's end; containerd is not there to be asked."""
    return Runtime(ROOT).state(container.id)["status"] == "stopped"


@pytest.mark.parametrize("victim", ["shim", "qemu"])
def test_a_pod_whose_process_is_killed_has_ended_and_is_removed(cri: Cri, victim: str) -> None:
    with cri.pod() as other, cri.pod() as pod:
        undisturbed = other.start("one", *SLEEP)
        containers = [pod.start(name, *SLEEP) for name in ("one", "two")]
        pids = helpers(pod)
        kill(pids[victim])
        for container in containers:
            assert await_exited(container).exit_code in (137, 255)
        await_not_ready(pod)
        directory = ROOT / pod.id
        pod.remove()
        for pid in pids.values():
            await_end(pid)
        assert not directory.exists()
        assert undisturbed.out("echo", "here") == "here\n"
    assert cri.call("ListPodSandbox", m.ListPods()).items == []
    assert cri.call("ListContainers", m.ListContainers()).containers == []
