"""A pod that the Sandbox API describes, as a config.json; and what its containers are given of it. No VM."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bufferzone import oci
from bufferzone.errors import SpecError
from bufferzone.sandbox import podfiles
from bufferzone.shim.events import Publisher
from bufferzone.vm.size import size_for
from bufferzone.wire import sandbox, task
from bufferzone.wire.proto import Any_
from bufferzone.workload import pod

NETNS = "/run/netns/cni-1"


def request(config: sandbox.PodConfig | None = None, **more: Any) -> sandbox.CreateSandboxRequest:
    options = Any_(type_url=sandbox.POD_CONFIG_URL, value=config.encode()) if config else None
    return sandbox.CreateSandboxRequest(sandbox_id="id", netns_path=NETNS, options=options, **more)


def written(bundle: Path, wish: sandbox.CreateSandboxRequest) -> oci.Spec:
    pod.write(str(bundle), wish, pod.config_of(wish))
    return oci.load(str(bundle), containerd=True)


def test_a_pod_without_a_description_is_one_with_the_nodes_name(tmp_path: Path) -> None:
    spec = written(tmp_path, request())
    assert spec.hostname == os.uname().nodename
    assert spec.process["args"] == ["/dev/init"]
    assert spec.process["capabilities"] == {}
    assert spec.namespace("network") == {"type": "network", "path": NETNS}
    assert {entry["type"] for entry in spec.linux["namespaces"]} == {"network", "mount", "uts", "pid", "ipc"}
    assert (tmp_path / "hostname").read_text() == f"{spec.hostname}\n"
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o644 for name in ("hosts", "resolv.conf"))


def test_the_vm_is_as_large_as_the_pods_resources_say(tmp_path: Path) -> None:
    resources = sandbox.Resources(memory_limit_in_bytes=1200 << 20, cpu_quota=200000, cpu_period=100000)
    spec = written(tmp_path, request(sandbox.PodConfig(linux=sandbox.LinuxPod(resources=resources))))
    size = size_for(spec.raw, spec.pod, vcpus=0, memory_mib=512, host_cpus=8, host_mib=1 << 14)
    assert (size.vcpus, size.memory_mib) == (2, 1536)


def test_namespaces_of_the_node_are_the_vms_own_and_no_network_is_the_nodes(tmp_path: Path) -> None:
    spaces = sandbox.NamespaceOption(pid=sandbox.NODE, ipc=sandbox.NODE)
    linux = sandbox.LinuxPod(security_context=sandbox.SecurityContext(namespace_options=spaces))
    wish = request(sandbox.PodConfig(linux=linux))
    wish.netns_path = ""
    spec = written(tmp_path, wish)
    assert [entry["type"] for entry in spec.linux["namespaces"]] == ["mount", "uts"]


@pytest.mark.parametrize(
    ("parent", "path"),
    [("/pods/x", "/pods/x/id"), ("/kube.slice/kube-pod1.slice", "kube-pod1.slice:cri-containerd:id")],
)
def test_its_cgroup_is_named_as_containerd_does(tmp_path: Path, parent: str, path: str) -> None:
    linux = sandbox.LinuxPod(cgroup_parent=parent, sysctls={"net.ipv4.ip_forward": "1"})
    spec = written(tmp_path, request(sandbox.PodConfig(linux=linux)))
    assert spec.cgroups_path == path
    assert spec.linux["sysctl"] == {"net.ipv4.ip_forward": "1"}


def test_of_the_pods_annotations_ours_count_and_who_it_is(tmp_path: Path) -> None:
    notes = {"bufferzone.memory": "600", "io.kubernetes.cri.sandbox-id": "another", "x": "y"}
    who = sandbox.PodMetadata(name="web", uid="u", namespace="shop")
    spec = written(tmp_path, request(sandbox.PodConfig(annotations=notes, metadata=who)))
    assert spec.annotations == {
        "bufferzone.memory": "600",
        "io.kubernetes.cri.sandbox-id": "id",
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-name": "web",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-uid": "u",
    }


def test_a_resolver_is_what_the_pod_says_or_the_nodes(tmp_path: Path) -> None:
    dns = sandbox.DnsConfig(servers=["10.0.0.10"], searches=["a.local", "b.local"], options=["ndots:5"])
    written(tmp_path, request(sandbox.PodConfig(dns_config=dns)))
    expected = "search a.local b.local\nnameserver 10.0.0.10\noptions ndots:5\n"
    assert (tmp_path / "resolv.conf").read_text() == expected
    assert pod.resolv_conf(None) == ""


def test_a_description_that_cannot_be_read_is_the_callers_fault() -> None:
    wish = request()
    wish.options = Any_(type_url=sandbox.POD_CONFIG_URL, value=b"\x0a\xff")
    with pytest.raises(SpecError, match=r"^runtime\.v1\.PodSandboxConfig: "):
        pod.config_of(wish)


def container(*mounts: dict[str, Any], ipc: bool = True, read_only: bool = False) -> dict[str, Any]:
    spaces = [{"type": "ipc", "path": "/proc/7/ns/ipc"} if ipc else {"type": "ipc"}]
    root = {"path": "rootfs", "readonly": read_only}
    return {"root": root, "linux": {"namespaces": spaces}, "mounts": list(mounts)}


def sources(spec: dict[str, Any]) -> dict[str, str]:
    return {entry["destination"]: entry["source"] for entry in spec["mounts"]}


def test_a_container_gets_the_pods_files_and_memory() -> None:
    tmpfs = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=64m"]}
    before = container(tmpfs)
    copy = json.loads(json.dumps(before))
    given = podfiles.given(before, "/pod")
    assert before == copy
    names = {"/etc/hostname": "hostname", "/etc/hosts": "hosts", "/etc/resolv.conf": "resolv.conf"}
    assert sources(given) == {place: f"/pod/{name}" for place, name in {**names, "/dev/shm": "shm"}.items()}
    assert all(entry["options"] == ["rbind", "rprivate", "rw"] for entry in given["mounts"])
    sealed = podfiles.given(container(read_only=True), "/pod")
    modes = {entry["destination"]: entry["options"][-1] for entry in sealed["mounts"]}
    assert modes == {**dict.fromkeys(names, "ro"), "/dev/shm": "rw"}


def test_what_is_mounted_already_stays_and_memory_of_its_own_too() -> None:
    hosts = {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts", "options": ["rbind"]}
    volume = {"destination": "/dev/shm/", "type": "bind", "source": "/volume", "options": ["rbind"]}
    given = sources(podfiles.given(container(hosts, volume), "/pod"))
    assert (given["/etc/hosts"], given["/dev/shm/"]) == ("/kubelet/hosts", "/volume")
    assert "/dev/shm" not in given
    assert "/dev/shm" not in sources(podfiles.given(container(ipc=False), "/pod"))


def test_what_holds_a_pod_is_no_task_of_containerds() -> None:
    publisher = Publisher("", "k8s.io", lambda line: None, untold="id")
    publisher._path = "/nowhere"
    for id in ("id", "other"):
        publisher.publish(task.TaskStart(container_id=id, pid=1))
    envelope = publisher._queue.get_nowait()
    assert envelope is not None
    assert task.TaskStart.decode(envelope.event.value).container_id == "other"
    assert publisher._queue.empty()
