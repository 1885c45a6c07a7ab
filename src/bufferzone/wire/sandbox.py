"""containerd's Sandbox API as a shim speaks it, and of the CRI's description of a pod what a VM is made from.

Source: containerd api/runtime/sandbox/v1/sandbox.proto, api/types/platform.proto and metrics.proto;
Kubernetes k8s.io/cri-api runtime.v1 PodSandboxConfig. Newer methods (UpdateSandbox, PortForward) are not
there, and containerd does without.
"""

from __future__ import annotations

from bufferzone.wire.proto import (
    Any_,
    Empty,
    Message,
    Timestamp,
    boolean,
    message,
    messages,
    sint,
    string,
    string_map,
    strings,
    uint,
)
from bufferzone.wire.task import Mount

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
#: SandboxStatusResponse.state, as the CRI spells it
READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
#: type of `CreateSandboxRequest.options` from the CRI
POD_CONFIG_URL = "runtime.v1.PodSandboxConfig"
#: NamespaceMode of the CRI: shared by the pod's containers, each its own, the node's
POD, CONTAINER, NODE = range(3)


class CreateSandboxRequest(Message):
    sandbox_id: str = string(1)
    bundle_path: str = string(2)
    rootfs: list[Mount] = messages(3, Mount)
    options: Any_ | None = message(4, Any_)
    netns_path: str = string(5)
    annotations: dict[str, str] = string_map(6)


class SandboxRequest(Message):
    """Of those methods that are told nothing else."""

    sandbox_id: str = string(1)


class StartSandboxResponse(Message):
    pid: int = uint(1)
    created_at: Timestamp | None = message(2, Timestamp)


class Platform(Message):
    os: str = string(1)
    architecture: str = string(2)
    variant: str = string(3)


class PlatformResponse(Message):
    platform: Platform | None = message(1, Platform)


class StopSandboxRequest(Message):
    sandbox_id: str = string(1)
    timeout_secs: int = uint(2)


class WaitSandboxResponse(Message):
    exit_status: int = uint(1)
    exited_at: Timestamp | None = message(2, Timestamp)


class SandboxStatusRequest(Message):
    sandbox_id: str = string(1)
    verbose: bool = boolean(2)


class SandboxStatusResponse(Message):
    sandbox_id: str = string(1)
    pid: int = uint(2)
    state: str = string(3)
    info: dict[str, str] = string_map(4)
    created_at: Timestamp | None = message(5, Timestamp)
    exited_at: Timestamp | None = message(6, Timestamp)


class Metric(Message):
    timestamp: Timestamp | None = message(1, Timestamp)
    id: str = string(2)
    data: Any_ | None = message(3, Any_)


class SandboxMetricsResponse(Message):
    metrics: Metric | None = message(1, Metric)


#: method name -> (request, response)
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "CreateSandbox": (CreateSandboxRequest, Empty),
    "StartSandbox": (SandboxRequest, StartSandboxResponse),
    "Platform": (SandboxRequest, PlatformResponse),
    "StopSandbox": (StopSandboxRequest, Empty),
    "WaitSandbox": (SandboxRequest, WaitSandboxResponse),
    "SandboxStatus": (SandboxStatusRequest, SandboxStatusResponse),
    "PingSandbox": (SandboxRequest, Empty),
    "ShutdownSandbox": (SandboxRequest, Empty),
    "SandboxMetrics": (SandboxRequest, SandboxMetricsResponse),
}


class PodMetadata(Message):
    name: str = string(1)
    uid: str = string(2)
    namespace: str = string(3)


class DnsConfig(Message):
    servers: list[str] = strings(1)
    searches: list[str] = strings(2)
    options: list[str] = strings(3)


class NamespaceOption(Message):
    network: int = uint(1)
    pid: int = uint(2)
    ipc: int = uint(3)


class SecurityContext(Message):
    namespace_options: NamespaceOption | None = message(1, NamespaceOption)


class Resources(Message):
    """LinuxContainerResources: microseconds, bytes."""

    cpu_period: int = sint(1)
    cpu_quota: int = sint(2)
    memory_limit_in_bytes: int = sint(4)


class LinuxPod(Message):
    cgroup_parent: str = string(1)
    security_context: SecurityContext | None = message(2, SecurityContext)
    sysctls: dict[str, str] = string_map(3)
    resources: Resources | None = message(5, Resources)


class PodConfig(Message):
    """PodSandboxConfig."""

    metadata: PodMetadata | None = message(1, PodMetadata)
    hostname: str = string(2)
    dns_config: DnsConfig | None = message(4, DnsConfig)
    annotations: dict[str, str] = string_map(7)
    linux: LinuxPod | None = message(8, LinuxPod)
