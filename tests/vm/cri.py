"""containerd with its CRI plug-in, and a client of it: pods and containers as the kubelet asks for them.

The daemon has its own network and mount namespace, so that bridge, mounts and state are the test's alone.
Every wait has a deadline.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from vm import cri_messages as m
from vm.containerd import RUNTIME, Containerd, version
from vm.cri_stream import Stream
from vm.podman import ROOT
from vm.verbs import await_true

TIMEOUT_S = 240
HANDLER = "bufferzone"
#: a runtime whose settings containerd's configuration has, as containerd can say them
SMALL_HANDLER, SMALL_MIB = "small", 192
CGROUPS = Path("/sys/fs/cgroup")
NAMESPACE = "k8s.io"
#: pods' network: what the bridge of the test's network namespace hands out
SUBNET = "10.88.77.0/24"
_ENTER = """\
import os, sys
sys.path.insert(0, {source!r})
from bufferzone.linux import mount as mnt, process
process.unshare(process.CLONE_NEWNS | process.CLONE_NEWNET)
mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_SHARED)
os.execv("/bin/sh", ["/bin/sh", "-c", "ip link set lo up; exec \\"$@\\"", "sh", *sys.argv[1:]])
"""
_CONFIG = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  disable_hugetlb_controller = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "{handler}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{handler}]
      runtime_type = "{runtime}"
      privileged_without_host_devices = true
      pod_annotations = ["bufferzone.*"]
"""


class CriContainerd(Containerd):
    """The daemon; `image` is busybox, as is the pause image, once `import_images` was called.

    `pods`: how they are made, with a container of the `pause` image or by the `shim`, without one.
    """

    def __init__(self, directory: Path, pods: str) -> None:
        self.pods = pods
        super().__init__(directory, (sys.executable, "-c", _ENTER.format(source=str(ROOT / "src"))))
        self._spaces: dict[str, int] = {}  # of one that was killed
        busybox = _busybox()
        layer = busybox.layer()
        self.image, self._archive = busybox.archive(layer)
        self._pause, self._pause_archive = busybox.archive(layer, ("sleep", "2000000000"))

    def config(self) -> str:
        cni = self.directory / "cni"
        cni.mkdir(exist_ok=True)
        ranges = {"type": "host-local", "dataDir": f"{self.directory}/ipam", "ranges": [[{"subnet": SUBNET}]]}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
        bridge["ipam"] = {**ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        network = {"cniVersion": "0.4.0", "name": "bz-cri", "plugins": [bridge, ports]}
        (cni / "10-bridge.conflist").write_text(json.dumps(network))
        plugin = _CONFIG.format(pause=self._pause, cni=cni, handler=HANDLER, runtime=RUNTIME)
        sandboxer = '      sandboxer = "shim"\n' if self.pods == "shim" else ""
        return self.base_config() + plugin + sandboxer + self._small_runtime()

    def _small_runtime(self) -> str:
        table = f'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{SMALL_HANDLER}'
        settings = f"memory_mib = {SMALL_MIB}\n"
        if version() < (1, 7):  # which tells a shim of a file alone
            (self.directory / "small.toml").write_text(settings)
            settings = f'ConfigPath = "{self.directory}/small.toml"\n'
        return f'{table}.options]\n{settings}{table}]\n      runtime_type = "{RUNTIME}"\n'

    def import_images(self) -> None:
        for data in (self._archive, *([self._pause_archive] if self.pods == "pause" else [])):
            self.ctr("images", "import", "-", stdin=data, namespace=NAMESPACE)

    def kill(self) -> None:
        """SIGKILL; what it started lives on, in the namespaces that the next one begins in."""
        for name in self._spaces:
            os.close(self._spaces[name])
        pid = self.process.pid
        self._spaces = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in ("net", "mnt")}
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        flags = {"net": "--net", "mnt": "--mount"}
        words = (f"{flags[name]}=/proc/{os.getpid()}/fd/{fd}" for name, fd in self._spaces.items())
        self._before = ("nsenter", *words, "--")

    def stop(self) -> None:
        super().stop()
        for fd in self._spaces.values():
            os.close(fd)
        self._spaces.clear()

    def in_its_mounts(self, *words: str) -> None:
        """Run a program of the host in the mount namespace that is the node's."""
        command = ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", "--", *words]
        subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)

    def in_its_network(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the host in the network namespace that is the node's."""
        command = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)


def _busybox() -> Any:
    described = importlib.util.spec_from_file_location("busybox_image", ROOT / "scripts" / "busybox_image.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


class Cri:
    """A client: `call` any method of the runtime service; the rest are the few steps that tests repeat."""

    def __init__(self, daemon: CriContainerd) -> None:
        self.daemon = daemon
        self._channel = grpc.insecure_channel(f"unix://{daemon.socket}")

    def call(self, method: str, request: m.Message, *, timeout_s: float = TIMEOUT_S) -> Any:
        """The answer; raises grpc.RpcError."""
        _, answer = m.METHODS[method]
        ask = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: message.encode(),
            response_deserializer=answer.decode,
        )
        return ask(request, timeout=timeout_s, wait_for_ready=True)

    def pod(self, **options: Any) -> PodSandbox:
        """A pod that runs; `options` are fields of PodSandboxConfig and PodLinux."""
        pod = PodSandbox(self, **options)
        pod.run()
        return pod

    def stream(self, method: str, request: m.Message) -> Stream:
        """Exec, Attach or PortForward: the connection that the daemon's streaming server answers."""
        return Stream(self.daemon.process.pid, self.call(method, request).url, TIMEOUT_S)

    def close(self) -> None:
        self._channel.close()


@contextmanager
def serving(directory: Path, pods: str = "pause") -> Iterator[Cri]:
    """A daemon with its images, and a client of it."""
    if pods == "shim" and version() < (2, 0):
        pytest.skip("the Sandbox API is containerd 2's: BUFFERZONE_CONTAINERD names the directory of one")
    daemon = CriContainerd(directory, pods)
    daemon.start()
    try:
        daemon.import_images()
        client = Cri(daemon)
        yield client
        client.close()
    finally:
        daemon.stop()


class PodSandbox:
    """One pod. `logs` is where its containers' logs are. As a context it ends removed."""

    def __init__(self, cri: Cri, *, logs: Path | None = None, handler: str = HANDLER, **options: Any) -> None:
        self.cri, self.uid, self._handler = cri, uuid.uuid4().hex, handler
        self.logs = logs or cri.daemon.directory / "logs" / self.uid
        self.logs.mkdir(parents=True, exist_ok=True)
        linux = {name: options.pop(name) for name in ("sysctls", "overhead", "resources") if name in options}
        security = m.PodSecurity(
            namespace_options=options.pop("namespaces", m.Namespaces(pid=m.CONTAINER)),
            privileged=options.pop("privileged", False),
        )
        self.config = m.PodConfig(
            metadata=m.PodMetadata(name=f"pod-{self.uid[:6]}", uid=self.uid, namespace="default"),
            log_directory=str(self.logs),
            linux=m.PodLinux(cgroup_parent=f"/bz-cri/{self.uid}", security_context=security, **linux),
            **{"hostname": f"pod-{self.uid[:6]}", **options},
        )
        self.id = ""

    def run(self) -> None:
        request = m.RunPod(config=self.config, runtime_handler=self._handler)
        self.id = self.cri.call("RunPodSandbox", request).pod_sandbox_id

    def status(self) -> m.PodStatus:
        return self.cri.call("PodSandboxStatus", m.PodStatusRequest(pod_sandbox_id=self.id)).status

    def create(self, name: str, *command: str, attempt: int = 0, **options: Any) -> PodContainer:
        """A container; `options` are fields of ContainerConfig, its security context and its resources."""
        security = m.Security(
            namespace_options=options.pop("namespaces", self.config.linux.security_context.namespace_options),
            **options.pop("security", {}),
        )
        config = m.ContainerConfig(
            metadata=m.Metadata(name=name, attempt=attempt),
            image=m.Image(image=self.cri.daemon.image),
            command=list(command),
            log_path=f"{name}.{attempt}.log",
            linux=m.ContainerLinux(security_context=security, resources=options.pop("resources", None)),
            **options,
        )
        request = m.CreateContainer(pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        return PodContainer(self, self.cri.call("CreateContainer", request).container_id, config.log_path)

    def start(self, name: str, *command: str, **options: Any) -> PodContainer:
        """`create`, and start it."""
        container = self.create(name, *command, **options)
        container.start()
        return container

    def remove(self) -> None:
        if self.id:
            self.cri.call("StopPodSandbox", m.PodId(pod_sandbox_id=self.id))
            self.cri.call("RemovePodSandbox", m.PodId(pod_sandbox_id=self.id))
            self.id = ""
        for parent in (CGROUPS, *CGROUPS.iterdir()):
            group = parent / "bz-cri" / self.uid
            if group.is_dir():
                # the kubelet tries again: who was killed leaves it once its memory is freed
                await_true(partial(_removed, group), f"{group} to be empty")

    def __enter__(self) -> PodSandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


class PodContainer:
    """One container of a pod."""

    def __init__(self, pod: PodSandbox, id: str, log: str) -> None:
        self.pod, self.cri, self.id = pod, pod.cri, id
        self._log = pod.logs / log

    def start(self) -> None:
        self.cri.call("StartContainer", m.ContainerId(container_id=self.id))

    def exec(self, *command: str, timeout: int = 0) -> m.ExecSyncAnswer:
        """ExecSync: output and status."""
        return self.cri.call("ExecSync", m.ExecSync(container_id=self.id, cmd=list(command), timeout=timeout))

    def out(self, *command: str) -> str:
        """What a command that has to succeed writes."""
        done = self.exec(*command)
        assert done.exit_code == 0, (command, done)
        return done.stdout.decode()

    def sh(self, script: str) -> str:
        """The same of a script."""
        return self.out("sh", "-c", script)

    def status(self) -> m.ContainerStatus:
        return self.cri.call("ContainerStatus", m.ContainerId(container_id=self.id)).status

    def log(self) -> list[tuple[str, str]]:
        """(stream, line) of its log, which the kubelet's format tells."""
        rows = [line.split(" ", 3) for line in self._log.read_text().splitlines()]
        return [(row[1], row[3]) for row in rows]

    def stop(self, timeout: int = 0) -> None:
        self.cri.call("StopContainer", m.StopContainer(container_id=self.id, timeout=timeout))

    def remove(self) -> None:
        self.cri.call("RemoveContainer", m.ContainerId(container_id=self.id))
