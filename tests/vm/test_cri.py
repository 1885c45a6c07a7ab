"""Pods as the kubelet asks for them: Debian's containerd with its CRI plug-in, and a client of our own."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

grpc = pytest.importorskip("grpc")

from vm import cri_messages as m  # noqa: E402
from vm.containerd import needs_containerd, version  # noqa: E402
from vm.cri import SMALL_HANDLER, SMALL_MIB, Cri, PodContainer, serving  # noqa: E402
from vm.cri_stream import RESIZE, STATUS, STDERR, STDIN, STDOUT  # noqa: E402
from vm.verbs import await_true  # noqa: E402

pytestmark = [
    pytest.mark.vm,
    needs_containerd,
    pytest.mark.skipif(not shutil.which("bridge", path="/usr/lib/cni"), reason="needs CNI's plug-ins"),
]

#: of the bridge of cri.SUBNET, in the node's network
NODE = "10.88.77.1"
SLEEP = ("sleep", "1000")
KINDS = ("net", "ipc", "uts", "pid", "mnt")
LINKS = f"for kind in {' '.join(KINDS)}; do readlink /proc/self/ns/$kind; done"
BOOT_ID = ("cat", "/proc/sys/kernel/random/boot_id")


@pytest.fixture(scope="module", params=["pause", "shim"])
def cri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cri]:
    """Pods with a pause image, and by the Sandbox API."""
    with serving(tmp_path_factory.mktemp("cri"), request.param) as client:
        yield client


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """(code, message) of the error that `call` ends with."""
    with pytest.raises(grpc.RpcError) as told:
        call()
    return told.value.code().name, told.value.details()


def await_state(container: PodContainer, state: int) -> m.ContainerStatus:
    await_true(lambda: container.status().state == state, f"state {state}")
    return container.status()


def listed(cri: Cri, **filters: object) -> list[str]:
    answer = cri.call("ListContainers", m.ListContainers(filter=m.ContainerFilter(**filters)))
    return [container.id for container in answer.containers]


def test_a_pod_runs_a_container_that_is_asked_logs_and_is_removed(cri: Cri) -> None:
    with cri.pod(labels={"app": "a"}) as pod:
        assert pod.status().state == m.READY
        script = "echo out; echo err >&2; exec sleep 1000"
        container = pod.start("one", "sh", "-c", script, labels={"is": "one"})
        status = container.status()
        assert status.state == m.RUNNING
        assert status.created_at <= status.started_at <= time.time_ns()
        assert container.out("uname", "-r").strip() != os.uname().release
        done = container.exec("sh", "-c", "echo o; echo e >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == (b"o\n", b"e\n", 3)
        assert sorted(container.log()) == [("stderr", "err"), ("stdout", "out")]
        stats = cri.call("ContainerStats", m.ContainerId(container_id=container.id)).stats
        assert stats.memory.working_set_bytes.value > 0
        assert stats.cpu.usage_core_nano_seconds.value > 0
        assert listed(cri, label_selector={"is": "one"}, state=m.Value(value=m.RUNNING)) == [container.id]
        assert listed(cri, pod_sandbox_id=pod.id, state=m.Value(value=m.EXITED)) == []
        container.stop()
        status = container.status()
        assert (status.state, status.exit_code) == (m.EXITED, 137)
        container.remove()
        assert listed(cri, pod_sandbox_id=pod.id) == []
        cri.call("StopPodSandbox", m.PodId(pod_sandbox_id=pod.id))
        assert pod.status().state == m.NOTREADY
    assert cri.call("ListPodSandbox", m.ListPods()).items == []


def test_containers_of_a_pod_share_vm_network_and_names_and_nothing_else(cri: Cri) -> None:
    with cri.pod() as pod:
        one, two = (pod.start(name, *SLEEP) for name in ("one", "two"))
        assert one.out(*BOOT_ID) == two.out(*BOOT_ID)
        links = [one_.sh(LINKS).split() for one_ in (one, two)]
        same = dict(zip(KINDS, (a == b for a, b in zip(*links, strict=True)), strict=True))
        assert same == {"net": True, "ipc": True, "uts": True, "pid": False, "mnt": False}
        assert one.out("hostname").strip() == pod.config.hostname
        one.sh("echo text > /dev/shm/file; echo text > /only-mine; nc -l -p 8080 -e echo hello &")
        assert two.sh("cat /dev/shm/file") == "text\n"
        assert two.exec("cat", "/only-mine").exit_code != 0
        assert two.sh("while ! nc 127.0.0.1 8080 </dev/null; do :; done") == "hello\n"
        assert pod.status().network.ip in one.out("ip", "addr")
        assert one.out("ps").count("sleep") == 1
        two.stop()
        assert one.status().state == m.RUNNING
        again = pod.start("two", *SLEEP, attempt=1)
        assert again.out(*BOOT_ID) == one.out(*BOOT_ID)
        assert two.status().exit_code == 137


def test_a_pods_processes_are_seen_by_all_where_it_shares_its_process_namespace(cri: Cri) -> None:
    with cri.pod(namespaces=m.Namespaces(pid=m.POD)) as pod:
        one = pod.start("one", "sleep", "1001")
        two = pod.start("two", "sleep", "1002")
        shown = two.out("ps")
        assert "sleep 1001" in shown
        assert ("/dev/init" if cri.daemon.pods == "shim" else "sleep 2000000000") in shown
        one.stop()
        assert "sleep 1001" not in two.out("ps")
        assert two.status().state == m.RUNNING


def test_an_ephemeral_container_sees_the_processes_of_its_target(cri: Cri) -> None:
    with cri.pod() as pod:
        target = pod.start("one", "sleep", "1001")
        namespaces = m.Namespaces(pid=m.TARGET, target_id=target.id)
        debugger = pod.start("debugger", "sleep", "1002", namespaces=namespaces)
        assert "sleep 1001" in debugger.out("ps")
        debugger.stop()
        assert target.status().state == m.RUNNING


def test_init_containers_run_one_after_the_other_and_tell_how_they_ended(cri: Cri) -> None:
    with cri.pod() as pod:
        for number in range(2):
            init = pod.start(f"init{number}", "sh", "-c", f"echo {number}; exit {number}")
            status = await_state(init, m.EXITED)
            assert (status.exit_code, init.log()) == (number, [("stdout", str(number))])
            assert status.finished_at >= status.started_at
            assert status.reason == ("Error" if number else "Completed")
            init.remove()
        assert pod.start("main", *SLEEP).status().state == m.RUNNING


def test_twenty_containers_live_in_one_vm_and_one_that_crashes_disturbs_nobody(cri: Cri) -> None:
    with cri.pod() as pod:
        containers = [pod.start(f"c{number}", *SLEEP) for number in range(20)]
        assert len({container.out(*BOOT_ID) for container in containers}) == 1
        crashing = pod.start("crash", "sh", "-c", "kill -SEGV $$; exit 9", attempt=0)
        assert await_state(crashing, m.EXITED).exit_code in (9, 139)
        assert len(listed(cri, pod_sandbox_id=pod.id, state=m.Value(value=m.RUNNING))) == 20
        stats = cri.call("ListContainerStats", m.ListContainers()).stats
        measured = {one.attributes.id for one in stats if one.memory and one.memory.working_set_bytes}
        assert measured == {container.id for container in containers}


def test_volumes_of_the_kubelet(cri: Cri, tmp_path) -> None:
    tmp_path.chmod(0o755)
    config, empty, message, hosts = (tmp_path / name for name in ("config", "empty", "message", "hosts"))
    (config / "..1").mkdir(parents=True)
    (config / "..1" / "key").write_text("one\n")
    (config / "..data").symlink_to("..1")
    (config / "key").symlink_to("..data/key")
    (empty / "sub").mkdir(parents=True)
    message.write_text("")
    hosts.write_text("10.0.0.1 somewhere\n")
    mounts = [
        m.Mount(container_path="/config", host_path=str(config), readonly=True),
        m.Mount(container_path="/empty", host_path=str(empty)),
        m.Mount(container_path="/sub", host_path=str(empty / "sub")),
        m.Mount(container_path="/dev/termination-log", host_path=str(message)),
        m.Mount(container_path="/etc/hosts", host_path=str(hosts)),
    ]
    with cri.pod() as pod:
        one = pod.start("one", *SLEEP, mounts=mounts)
        two = pod.start("two", *SLEEP, mounts=mounts)
        assert one.out("cat", "/config/key") == "one\n"
        (config / "..2").mkdir()
        (config / "..2" / "key").write_text("two\n")
        (config / "..data_tmp").symlink_to("..2")
        (config / "..data_tmp").rename(config / "..data")
        (config / "..1" / "key").unlink()
        (config / "..1").rmdir()
        # virtiofsd lets the guest keep a name for a moment: 0.1 s, or a second with the Rust one
        await_true(lambda: one.exec("cat", "/config/key").stdout == b"two\n", "the ConfigMap's new file", 30)
        assert one.exec("sh", "-c", "echo >/config/new").exit_code != 0
        one.sh("echo written > /empty/sub/file; echo why > /dev/termination-log")
        assert two.out("cat", "/sub/file") == "written\n"
        assert message.read_text() == "why\n"
        assert two.out("cat", "/etc/hosts") == hosts.read_text()


def test_exec_streams_both_ways_and_tells_the_exit_status(cri: Cri) -> None:
    with cri.pod() as pod:
        one = pod.start("one", *SLEEP)
        script = "read line; echo got $line; echo error >&2; exit 5"
        request = m.Exec(container_id=one.id, cmd=["sh", "-c", script], stdin=True, stdout=True, stderr=True)
        with cri.stream("Exec", request) as stream:
            stream.send(STDIN, b"word\n")
            said = stream.rest()
        assert (said[STDOUT], said[STDERR]) == (b"got word\n", b"error\n")
        (cause,) = json.loads(said[STATUS])["details"]["causes"]
        assert (cause["reason"], cause["message"]) == ("ExitCode", "5")
        request = m.Exec(container_id=one.id, cmd=["sh"], tty=True, stdin=True, stdout=True)
        with cri.stream("Exec", request) as stream:
            stream.send(RESIZE, b'{"Width": 77, "Height": 11}')
            stream.send(STDIN, b"while test \"$(stty size)\" != '11 77'; do :; done; echo si''ze\n")
            stream.until(STDOUT, b"size\r\n")
            stream.send(STDIN, b"exit\n")
            assert json.loads(stream.rest()[STATUS])["status"] == "Success"


def test_attach_reaches_the_containers_own_streams_and_comes_back(cri: Cri) -> None:
    with cri.pod() as pod:
        one = pod.start("one", "sh", "-c", "while read line; do echo got $line; done", stdin=True)
        request = m.Attach(container_id=one.id, stdin=True, stdout=True, stderr=True)
        for word in (b"first", b"second"):
            with cri.stream("Attach", request) as stream:
                stream.send(STDIN, word + b"\n")
                stream.until(STDOUT, b"got " + word + b"\n")
        await_true(lambda: len(one.log()) == 2, "the log")
        assert one.log() == [("stdout", "got first"), ("stdout", "got second")]


def test_a_port_is_forwarded_to_the_pods_own_localhost(cri: Cri) -> None:
    with cri.pod() as pod:
        serve = "echo hello >/tmp/page; exec httpd -f -p 127.0.0.1:8080 -h /tmp"
        one = pod.start("one", "sh", "-c", serve)
        await_true(lambda: one.exec("wget", "-qO-", "127.0.0.1:8080/page").exit_code == 0, "the server")
        with cri.stream("PortForward", m.PortForward(pod_sandbox_id=pod.id, port=[8080])) as stream:
            ports = (stream.receive(), stream.receive())
            assert sorted(ports) == [(0, b"\x90\x1f"), (1, b"\x90\x1f")]
            stream.send(0, b"GET /page HTTP/1.0\r\n\r\n")
            assert stream.until(0, b"hello\n").startswith(b"HTTP/1.1 200 OK")


def test_a_port_of_the_node_leads_to_the_pod(cri: Cri) -> None:
    mapping = m.PortMapping(container_port=8080, host_port=18080)
    with cri.pod(port_mappings=[mapping]) as pod:
        pod.start("one", "sh", "-c", "while :; do nc -l -p 8080 -e echo hello; done")
        ask = f"while ! busybox nc {NODE} 18080 </dev/null; do :; done"  # it may not listen yet
        assert cri.daemon.in_its_network("timeout", "60", "sh", "-c", ask).stdout == "hello\n"


def test_memory_of_the_kubelet_is_shared_by_the_pods_containers(cri: Cri, tmp_path: Path) -> None:
    """emptyDir with medium Memory: a tmpfs of the node."""
    tmp_path.chmod(0o755)
    volume = tmp_path / "memory"
    volume.mkdir()
    cri.daemon.in_its_mounts("mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "tmpfs", str(volume))
    mounts = [m.Mount(container_path="/memory", host_path=str(volume))]
    with cri.pod() as pod:
        one = pod.start("one", *SLEEP, mounts=mounts)
        two = pod.start("two", *SLEEP, mounts=mounts)
        one.sh("echo text > /memory/file")
        assert two.sh("cat /memory/file") == "text\n"
        full = two.exec("dd", "if=/dev/zero", "of=/memory/zeros", "bs=1M", "count=2")
        assert b"No space left" in full.stderr
    cri.daemon.in_its_mounts("umount", str(volume))


def test_the_nodes_network_is_refused_by_one_line_and_nothing_is_left(cri: Cri) -> None:
    if cri.daemon.pods == "shim" and version() < (2, 3):
        pytest.skip("containerd's issue 12983: it panics; tests/flow has the shim's part")
    _, told = refusal(lambda: cri.pod(namespaces=m.Namespaces(network=m.NODE, pid=m.CONTAINER)))
    assert "a VM cannot use the host's network" in told
    assert cri.call("ListPodSandbox", m.ListPods()).items == []


def test_what_cannot_be_is_told_as_the_cri_says(cri: Cri) -> None:
    with cri.pod() as pod:
        nowhere = m.CreateContainer(pod_sandbox_id="nosuch", config=m.ContainerConfig())
        assert refusal(lambda: cri.call("CreateContainer", nowhere))[0] in ("NOT_FOUND", "UNKNOWN")
        nobody = m.ContainerId(container_id="nosuch")
        assert refusal(lambda: cri.call("StartContainer", nobody))[0] == "NOT_FOUND"
        cri.call("RemoveContainer", m.ContainerId(container_id="nosuch"))
        missing = pod.create("missing", "/no/such/program")
        assert "no such file or directory" in refusal(missing.start)[1]
        assert missing.status().state == m.EXITED
        ended = pod.start("ended", "true")
        await_state(ended, m.EXITED)
        assert refusal(lambda: ended.exec("true"))[0] in ("UNKNOWN", "FAILED_PRECONDITION")
        slow = pod.start("slow", *SLEEP)
        assert refusal(lambda: slow.exec(*SLEEP, timeout=1))[0] == "DEADLINE_EXCEEDED"
        assert slow.status().state == m.RUNNING


def test_a_limit_is_changed_where_the_vm_has_room_and_refused_where_not(cri: Cri) -> None:
    with cri.pod() as pod:
        limit = m.Resources(memory_limit_in_bytes=64 << 20, cpu_period=100000, cpu_quota=50000)
        one = pod.start("one", *SLEEP, resources=limit)
        assert one.out("cat", "/sys/fs/cgroup/memory.max").strip() == str(64 << 20)
        more = m.UpdateContainer(container_id=one.id, linux=m.Resources(memory_limit_in_bytes=96 << 20))
        cri.call("UpdateContainerResources", more)
        assert one.out("cat", "/sys/fs/cgroup/memory.max").strip() == str(96 << 20)
        much = m.UpdateContainer(container_id=one.id, linux=m.Resources(memory_limit_in_bytes=1 << 40))
        assert "the VM has" in refusal(lambda: cri.call("UpdateContainerResources", much))[1]
        assert one.out("cat", "/sys/fs/cgroup/memory.max").strip() == str(96 << 20)


def test_a_runtime_class_of_the_nodes_has_settings_of_its_own(cri: Cri) -> None:
    if cri.daemon.pods == "shim":
        pytest.skip("containerd 2.1 itself fails where a runtime of the Sandbox API has options")
    with cri.pod(handler=SMALL_HANDLER) as pod:
        one, two = (pod.start(name, *SLEEP) for name in ("one", "two"))
        for container in (one, two):
            assert int(container.sh("grep MemTotal /proc/meminfo").split()[1]) < SMALL_MIB << 10


def test_the_vm_is_as_large_as_the_limits_of_the_pods_containers_add_up_to(cri: Cri) -> None:
    resources = m.Resources(memory_limit_in_bytes=1200 << 20, cpu_period=100000, cpu_quota=200000)
    with cri.pod(resources=resources) as pod:
        limit = m.Resources(memory_limit_in_bytes=600 << 20)
        one, _ = (pod.start(name, *SLEEP, resources=limit) for name in ("one", "two"))
        total_kib = int(one.sh("grep MemTotal /proc/meminfo").split()[1])
        assert total_kib > 1200 << 10
        assert one.sh("grep -c ^processor /proc/cpuinfo").strip() == "2"
