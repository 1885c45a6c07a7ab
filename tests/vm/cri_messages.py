"""The messages of the Kubernetes CRI, `runtime.v1`, as far as the tests use them, and its methods.

Written from the published field numbers, in the codec that speaks to containerd. Others are skipped.
Source: Kubernetes' CRI API, k8s.io/cri-api, version v1.
"""

from __future__ import annotations

from bufferzone.wire.proto import (
    Message,
    blob,
    boolean,
    message,
    messages,
    sint,
    string,
    string_map,
    strings,
    uint,
    uints,
)

#: NamespaceMode
POD, CONTAINER, NODE, TARGET = range(4)
#: ContainerState
CREATED, RUNNING, EXITED, UNKNOWN = range(4)
#: PodSandboxState
READY, NOTREADY = range(2)


class Value(Message):
    """Int64Value, UInt64Value, ContainerStateValue, PodSandboxStateValue: one number."""

    value: int = sint(1)


class KeyValue(Message):
    key: str = string(1)
    value: str = string(2)


class PodMetadata(Message):
    name: str = string(1)
    uid: str = string(2)
    namespace: str = string(3)
    attempt: int = uint(4)


class Metadata(Message):
    name: str = string(1)
    attempt: int = uint(2)


class DnsConfig(Message):
    servers: list[str] = strings(1)
    searches: list[str] = strings(2)
    options: list[str] = strings(3)


class PortMapping(Message):
    protocol: int = uint(1)
    container_port: int = sint(2)
    host_port: int = sint(3)
    host_ip: str = string(4)


class Namespaces(Message):
    """NamespaceOption."""

    network: int = uint(1)
    pid: int = uint(2)
    ipc: int = uint(3)
    target_id: str = string(4)


class Resources(Message):
    """LinuxContainerResources."""

    cpu_period: int = sint(1)
    cpu_quota: int = sint(2)
    cpu_shares: int = sint(3)
    memory_limit_in_bytes: int = sint(4)
    oom_score_adj: int = sint(5)
    cpuset_cpus: str = string(6)


class PodSecurity(Message):
    namespace_options: Namespaces | None = message(1, Namespaces)
    run_as_user: Value | None = message(3, Value)
    privileged: bool = boolean(6)


class PodLinux(Message):
    cgroup_parent: str = string(1)
    security_context: PodSecurity | None = message(2, PodSecurity)
    sysctls: dict[str, str] = string_map(3)
    overhead: Resources | None = message(4, Resources)
    resources: Resources | None = message(5, Resources)


class PodConfig(Message):
    """PodSandboxConfig."""

    metadata: PodMetadata | None = message(1, PodMetadata)
    hostname: str = string(2)
    log_directory: str = string(3)
    dns_config: DnsConfig | None = message(4, DnsConfig)
    port_mappings: list[PortMapping] = messages(5, PortMapping)
    labels: dict[str, str] = string_map(6)
    annotations: dict[str, str] = string_map(7)
    linux: PodLinux | None = message(8, PodLinux)


class Image(Message):
    """ImageSpec."""

    image: str = string(1)


class Mount(Message):
    container_path: str = string(1)
    host_path: str = string(2)
    readonly: bool = boolean(3)
    propagation: int = uint(5)


class Capability(Message):
    add_capabilities: list[str] = strings(1)
    drop_capabilities: list[str] = strings(2)


class Security(Message):
    """LinuxContainerSecurityContext."""

    capabilities: Capability | None = message(1, Capability)
    privileged: bool = boolean(2)
    namespace_options: Namespaces | None = message(3, Namespaces)
    run_as_user: Value | None = message(5, Value)
    run_as_username: str = string(6)
    readonly_rootfs: bool = boolean(7)
    no_new_privs: bool = boolean(11)
    run_as_group: Value | None = message(12, Value)


class ContainerLinux(Message):
    resources: Resources | None = message(1, Resources)
    security_context: Security | None = message(2, Security)


class ContainerConfig(Message):
    metadata: Metadata | None = message(1, Metadata)
    image: Image | None = message(2, Image)
    command: list[str] = strings(3)
    args: list[str] = strings(4)
    working_dir: str = string(5)
    envs: list[KeyValue] = messages(6, KeyValue)
    mounts: list[Mount] = messages(7, Mount)
    labels: dict[str, str] = string_map(9)
    annotations: dict[str, str] = string_map(10)
    log_path: str = string(11)
    stdin: bool = boolean(12)
    stdin_once: bool = boolean(13)
    tty: bool = boolean(14)
    linux: ContainerLinux | None = message(15, ContainerLinux)


class PodId(Message):
    """What names a pod alone: Stop-, RemovePodSandboxRequest, RunPodSandboxResponse."""

    pod_sandbox_id: str = string(1)


class ContainerId(Message):
    """What names a container alone: Start-, RemoveContainerRequest and more, CreateContainerResponse."""

    container_id: str = string(1)


class Nothing(Message):
    """An answer without fields, or whose fields are not looked at."""


class RunPod(Message):
    config: PodConfig | None = message(1, PodConfig)
    runtime_handler: str = string(2)


class PodStatusRequest(Message):
    pod_sandbox_id: str = string(1)
    verbose: bool = boolean(2)


class PodNetwork(Message):
    ip: str = string(1)


class PodStatus(Message):
    id: str = string(1)
    metadata: PodMetadata | None = message(2, PodMetadata)
    state: int = uint(3)
    created_at: int = sint(4)
    network: PodNetwork | None = message(5, PodNetwork)
    labels: dict[str, str] = string_map(7)
    annotations: dict[str, str] = string_map(8)
    runtime_handler: str = string(9)


class PodStatusAnswer(Message):
    status: PodStatus | None = message(1, PodStatus)
    info: dict[str, str] = string_map(2)


class PodFilter(Message):
    id: str = string(1)
    state: Value | None = message(2, Value)
    label_selector: dict[str, str] = string_map(3)


class ListPods(Message):
    filter: PodFilter | None = message(1, PodFilter)


class Pod(Message):
    id: str = string(1)
    metadata: PodMetadata | None = message(2, PodMetadata)
    state: int = uint(3)
    labels: dict[str, str] = string_map(5)


class Pods(Message):
    items: list[Pod] = messages(1, Pod)


class CreateContainer(Message):
    pod_sandbox_id: str = string(1)
    config: ContainerConfig | None = message(2, ContainerConfig)
    sandbox_config: PodConfig | None = message(3, PodConfig)


class StopContainer(Message):
    container_id: str = string(1)
    timeout: int = sint(2)


class ContainerFilter(Message):
    id: str = string(1)
    state: Value | None = message(2, Value)
    pod_sandbox_id: str = string(3)
    label_selector: dict[str, str] = string_map(4)


class ListContainers(Message):
    """Also ListContainerStatsRequest, whose filter has the id and the pod at 1 and 2."""

    filter: ContainerFilter | None = message(1, ContainerFilter)


class Container(Message):
    id: str = string(1)
    pod_sandbox_id: str = string(2)
    metadata: Metadata | None = message(3, Metadata)
    state: int = uint(6)


class Containers(Message):
    containers: list[Container] = messages(1, Container)


class ContainerStatus(Message):
    id: str = string(1)
    metadata: Metadata | None = message(2, Metadata)
    state: int = uint(3)
    created_at: int = sint(4)
    started_at: int = sint(5)
    finished_at: int = sint(6)
    exit_code: int = sint(7)
    reason: str = string(10)
    message: str = string(11)
    mounts: list[Mount] = messages(14, Mount)
    log_path: str = string(15)


class ContainerStatusAnswer(Message):
    status: ContainerStatus | None = message(1, ContainerStatus)


class UpdateContainer(Message):
    container_id: str = string(1)
    linux: Resources | None = message(2, Resources)


class ExecSync(Message):
    container_id: str = string(1)
    cmd: list[str] = strings(2)
    timeout: int = sint(3)


class ExecSyncAnswer(Message):
    stdout: bytes = blob(1)
    stderr: bytes = blob(2)
    exit_code: int = sint(3)


class Exec(Message):
    container_id: str = string(1)
    cmd: list[str] = strings(2)
    tty: bool = boolean(3)
    stdin: bool = boolean(4)
    stdout: bool = boolean(5)
    stderr: bool = boolean(6)


class Attach(Message):
    container_id: str = string(1)
    stdin: bool = boolean(2)
    tty: bool = boolean(3)
    stdout: bool = boolean(4)
    stderr: bool = boolean(5)


class PortForward(Message):
    pod_sandbox_id: str = string(1)
    port: list[int] = uints(2)


class Url(Message):
    url: str = string(1)


class CpuUsage(Message):
    timestamp: int = sint(1)
    usage_core_nano_seconds: Value | None = message(2, Value)


class MemoryUsage(Message):
    timestamp: int = sint(1)
    working_set_bytes: Value | None = message(2, Value)


class Attributes(Message):
    id: str = string(1)
    metadata: Metadata | None = message(2, Metadata)


class Stats(Message):
    attributes: Attributes | None = message(1, Attributes)
    cpu: CpuUsage | None = message(2, CpuUsage)
    memory: MemoryUsage | None = message(3, MemoryUsage)


class StatsAnswer(Message):
    stats: Stats | None = message(1, Stats)


class ListStatsAnswer(Message):
    stats: list[Stats] = messages(1, Stats)


class Condition(Message):
    type: str = string(1)
    status: bool = boolean(2)
    reason: str = string(3)
    message: str = string(4)


class RuntimeStatus(Message):
    conditions: list[Condition] = messages(1, Condition)


class StatusAnswer(Message):
    status: RuntimeStatus | None = message(1, RuntimeStatus)


#: method -> (what is asked, what is answered)
METHODS: dict[str, tuple[type[Message], type[Message]]] = {
    "Status": (Nothing, StatusAnswer),
    "RunPodSandbox": (RunPod, PodId),
    "StopPodSandbox": (PodId, Nothing),
    "RemovePodSandbox": (PodId, Nothing),
    "PodSandboxStatus": (PodStatusRequest, PodStatusAnswer),
    "ListPodSandbox": (ListPods, Pods),
    "CreateContainer": (CreateContainer, ContainerId),
    "StartContainer": (ContainerId, Nothing),
    "StopContainer": (StopContainer, Nothing),
    "RemoveContainer": (ContainerId, Nothing),
    "ListContainers": (ListContainers, Containers),
    "ContainerStatus": (ContainerId, ContainerStatusAnswer),
    "UpdateContainerResources": (UpdateContainer, Nothing),
    "ReopenContainerLog": (ContainerId, Nothing),
    "ExecSync": (ExecSync, ExecSyncAnswer),
    "Exec": (Exec, Url),
    "Attach": (Attach, Url),
    "PortForward": (PortForward, Url),
    "ContainerStats": (ContainerId, StatsAnswer),
    "ListContainerStats": (ListContainers, ListStatsAnswer),
}
