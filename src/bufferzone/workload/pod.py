"""A pod that containerd describes by its Sandbox API becomes a bundle of ours: pure, but for `write`.

What holds the pod's namespaces in its VM is a container whose only process waits; no image is needed for it.
It has what containerd gives its pause container. Of the pod's annotations ours alone count, as with the
`pod_annotations` that we ask for in containerd's settings: any pod's author may write those of the CRI.
Source: containerd internal/cri/server/podsandbox, sandbox_run_linux.go.
"""

from __future__ import annotations

import os

from bufferzone import jsontext
from bufferzone.errors import HostError, SpecError
from bufferzone.oci import cri
from bufferzone.setting import PREFIX
from bufferzone.wire import sandbox
from bufferzone.wire.proto import DecodeError
from bufferzone.workload import default_spec, idle
from bufferzone.workload.config_json import INIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.wire.sandbox import CreateSandboxRequest, DnsConfig, PodConfig

#: not `rootfs`, which containerd wants to be empty again
_ROOT = "root"
_NAMES = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def config_of(request: CreateSandboxRequest) -> PodConfig:
    """The CRI's description; an empty one from a caller that is not the CRI. Raises `SpecError`."""
    options = request.options
    if options is None or not options.type_url.endswith(sandbox.POD_CONFIG_URL):
        return sandbox.PodConfig()
    try:
        return sandbox.PodConfig.decode(options.value)
    except DecodeError as error:
        raise SpecError(f"{sandbox.POD_CONFIG_URL}: {error}") from error


def config_json(request: CreateSandboxRequest, config: PodConfig, init: str) -> dict[str, Any]:
    """The value of config.json; `init` is the program that waits."""
    linux = config.linux or sandbox.LinuxPod()
    spec = default_spec.default_spec(rootless=False)
    spec["root"]["path"] = "rootfs" if request.rootfs else _ROOT
    spec["hostname"] = config.hostname or os.uname().nodename
    spec["annotations"] = _annotations(request, config, linux)
    spec["process"].update(args=[INIT], terminal=False, capabilities={})
    spec["mounts"] = [entry for entry in spec["mounts"] if entry["destination"] in ("/proc", "/dev")]
    spec["mounts"] += [
        {"destination": "/dev/shm", "type": "bind", "source": "shm", "options": ["bind"]},
        {"destination": INIT, "type": "bind", "source": init, "options": ["bind", "ro"]},
    ]
    spec["linux"]["namespaces"] = _namespaces(request, linux)
    spec["linux"]["sysctl"] = linux.sysctls
    if linux.cgroup_parent:
        spec["linux"]["cgroupsPath"] = _cgroup(linux.cgroup_parent, request.sandbox_id)
    return spec


def _annotations(request: CreateSandboxRequest, config: PodConfig, linux: sandbox.LinuxPod) -> dict[str, str]:
    asked = {**config.annotations, **request.annotations}
    found = {key: text for key, text in asked.items() if key.startswith(PREFIX)}
    found |= {cri.SANDBOX_ID: request.sandbox_id, cri.CONTAINER_TYPE: "sandbox"}
    if pod := config.metadata:
        found |= {cri.POD_NAME: pod.name, cri.POD_NAMESPACE: pod.namespace, cri.POD_UID: pod.uid}
    if resources := linux.resources:
        values = (resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period)
        found |= {key: str(value) for key, value in zip(cri.POD_LIMITS, values, strict=True) if value > 0}
    return found


def _namespaces(request: CreateSandboxRequest, linux: sandbox.LinuxPod) -> list[dict[str, str]]:
    """Those of the node are the VM's own, as with any container; without a path the network is the node's."""
    security = linux.security_context or sandbox.SecurityContext()
    asked = security.namespace_options or sandbox.NamespaceOption()
    of_node = {"pid": asked.pid == sandbox.NODE, "ipc": asked.ipc == sandbox.NODE}
    found = [{"type": kind} for kind in ("mount", "uts", "pid", "ipc") if not of_node.get(kind)]
    if request.netns_path:
        found.append({"type": "network", "path": request.netns_path})
    return found


def _cgroup(parent: str, id: str) -> str:
    """As containerd names a container's: systemd's form below a slice."""
    name = os.path.basename(parent.rstrip("/"))
    return f"{name}:cri-containerd:{id}" if name.endswith(".slice") else os.path.join(parent, id)


def resolv_conf(config: DnsConfig | None) -> str:
    """resolv.conf(5) as the pod asks for it; empty: it is the node's."""
    if config is None:
        return ""
    lines = [f"search {' '.join(config.searches)}"] if config.searches else []
    lines += [f"nameserver {server}" for server in config.servers]
    lines += [f"options {' '.join(config.options)}"] if config.options else []
    return "".join(f"{line}\n" for line in lines)


def write(bundle: str, request: CreateSandboxRequest, config: PodConfig) -> None:
    """Make the bundle complete: config.json, what it names, and what `sandbox.podfiles` gives to the pod's
    containers. Raises `HostError`.
    """
    try:
        for name in (_ROOT, "shm"):
            os.makedirs(os.path.join(bundle, name), 0o755, exist_ok=True)
        spec = config_json(request, config, idle.write(bundle))
        texts = {
            "hostname": f"{spec['hostname']}\n",
            "hosts": _read("/etc/hosts") or _NAMES,
            "resolv.conf": resolv_conf(config.dns_config) or _read("/etc/resolv.conf"),
            "config.json": jsontext.dumps(spec),
        }
        for name, text in texts.items():
            with open(os.path.join(bundle, name), "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)  # whatever our umask
    except OSError as error:
        raise HostError(f"cannot write {error.filename}: {error.strerror}", code="write-failed") from error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # a node may be without
