"""Decides, does nothing: a bundle's spec and the settings become values that `boot` and `containers` carry
out.

No file is opened here except through `Host`, what the caller found out about this machine. Settings and the
OCI spec end here; below travel only `model` values and the JSON the agent gets.
"""

from __future__ import annotations

import json

from bufferzone.digest import sha256
from bufferzone.errors import HostError, SpecError
from bufferzone.model import Bind, FileCopy, Hook, Rates
from bufferzone.oci.mounts import is_bind
from bufferzone.record import Record
from bufferzone.sandbox import limits, mounts
from bufferzone.wire import agent, ttrpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.model import Features

#: of the guest's form of config.json; the rest of the frame is for the seccomp filter
_MOST_BYTES = ttrpc.MAX_PAYLOAD - (512 << 10)

#: what engines bind into every container, small and written once: with a root disk the guest gets a copy
_ENGINE_FILES = (
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/run/.containerenv",
    "/dev/init",  # process 1 of a sandbox without a command
)
#: namespaces that a container may share with another one of its VM, besides the network, and their files in
#: /proc/PID/ns
_SHARED = {
    "ipc": ("ipc",),
    "uts": ("uts",),
    "pid": ("pid", "pid_for_children"),
    "user": ("user",),
    "cgroup": ("cgroup",),
}
#: createContainer's path is the host's, and what it changes in the root file system arrives in the guest
_HOST_HOOKS = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
_GUEST_HOOKS = ("startContainer",)


class ContainerPlan(Record):
    """One container, decided: what to bind into the share, what the agent gets, which hooks run on the host.

    `seccomp` is the spec's section (compiled later) or None. `binds` are in order, the rootfs first unless
    it is on a disk. `locks` are the names of those whose files may be locked on both sides. `files` are
    copied into the guest.
    """

    id: str
    binds: tuple[Bind, ...]
    locks: tuple[str, ...]
    files: tuple[FileCopy, ...]
    guest_spec: bytes
    seccomp: dict[str, Any] | None
    hooks: dict[str, tuple[Hook, ...]]
    terminal: bool


def within_features(
    settings: Settings, features: Features, *, shared: tuple[str, ...], restored: bool
) -> Settings:
    """The settings as far as the VMM can follow them; raises `HostError` `vmm-feature` for what it must and
    cannot. `shared` are paths of the host that the guest shares; `restored`: the VM is a checkpoint's.
    """
    lacking, hint, rates = "", "another VMM", rates_of(settings)
    if shared and not (features.virtiofs or features.tree):
        lacking = f"cannot share files of the host with a VM: {shared[0]}"
        hint = "rootfs = block and no volumes, or vmm = qemu"
    elif settings.rootfs == "block" and not features.slot_bytes:
        lacking = "has no slot for the image of a root file system"
    elif restored and not features.snapshot:
        lacking = "cannot restore a VM"
    elif settings.kvm == "require" and not features.wall:
        lacking = "makes no use of KVM, which is required"
    elif settings.egress and not features.nic:
        lacking = "has no network for a policy to hold"
    elif (rates.disk_bytes or rates.disk_ops) and not features.disk_rate:
        lacking = "cannot limit what is read from a disk"
    elif (rates.disk_bytes or rates.disk_ops) and shared:
        lacking = f"cannot limit what is read and written of shared files: {shared[0]}"
        hint = "rootfs = block and no volumes, or blockIO in linux.resources"
    elif rates.network_bytes and not features.nic_rate:
        lacking = "cannot limit a network"
        hint = "vmm = firecracker, or the network's own limit, such as CNI's bandwidth"
    if lacking:
        raise HostError(f"{features.label} {lacking}", hint=hint, code="vmm-feature")
    return settings if features.templates else settings.with_values(templates=False)


def rates_of(settings: Settings) -> Rates:
    """What a VM of these settings may take."""
    return Rates(
        disk_bytes=settings.disk_kib_per_s << 10,
        disk_ops=settings.disk_ops_per_s,
        network_bytes=settings.network_kib_per_s << 10,
    )


def plan_container(
    spec: dict[str, Any],
    *,
    container_id: str,
    bundle: str,
    host: mounts.Host,
    is_small: Callable[[str], bool] | None = None,
    other_container: Callable[[int], str] = lambda pid: "",
    ipc_of: str = "",
) -> ContainerPlan:
    """The container `spec` describes. `host` says what its paths are. `other_container(pid)` is the id of the
    container of the same VM that this process stands for, or empty; `ipc_of` the one whose IPC
    namespace and /dev/shm it has, whatever `spec` says. With `is_small`, which says whether a path is a small
    regular file, the root file system is on a disk.

    Raises `SpecError` for what a VM cannot give (naming the JSON path).
    """
    guest = json.loads(json.dumps(spec))
    binds: list[Bind] = []
    files: list[FileCopy] = []
    if is_small is None:
        binds.append(_rootfs(guest, container_id, bundle))
    else:
        guest["root"]["path"] = f"{agent.ROOT_PATH}/rootfs"
    guest["mounts"] = []
    for index, entry in enumerate(spec.get("mounts") or []):
        copy = _copy(entry, index, container_id, bundle, is_small)
        if copy is not None:
            files.append(copy)
            source = f"{agent.FILES_PATH}/{copy.name}"
            guest["mounts"].append({"options": ["bind"], **entry, "type": "bind", "source": source})
        else:
            name = share_name(container_id, str(index))
            made, bind = mounts.decide(entry, index, bundle=bundle, host=host, name=name)
            guest["mounts"].append(made)
            binds += [bind] if bind is not None else []
    linux = guest.setdefault("linux", {})
    linux["namespaces"] = _namespaces(linux.get("namespaces") or [], other_container)
    if ipc_of:
        _share_ipc(guest, f"container:{ipc_of}")
    _finish_mounts(guest, spec.get("mounts") or [])
    linux.pop("cgroupsPath", None)
    seccomp = linux.pop("seccomp", None)
    if linux.get("resources"):
        linux["resources"] = limits.for_guest(linux["resources"])
    hooks = _hooks(guest, on_disk=is_small is not None)
    guest["hooks"] = {name: hooks[name] for name in _GUEST_HOOKS if hooks.get(name)}
    if guest["hooks"]:
        guest["bundle"] = bundle
    return ContainerPlan(
        id=container_id,
        binds=tuple(binds),
        locks=_lockable(guest["mounts"]),
        files=tuple(files),
        guest_spec=_encoded(guest),
        seccomp=seccomp,
        hooks={name: tuple(_hook(h) for h in hooks.get(name) or []) for name in _HOST_HOOKS},
        terminal=bool((spec.get("process") or {}).get("terminal")),
    )


def _encoded(guest: dict[str, Any]) -> bytes:
    text = json.dumps(guest, separators=(",", ":")).encode("utf-8", "surrogateescape")
    if len(text) > _MOST_BYTES:
        raise SpecError(
            f"config.json: too large for one message to the guest: {len(text)} bytes, at most {_MOST_BYTES}"
        )
    return text


def share_name(container_id: str, part: str) -> str:
    """The name below the share of a container's rootfs or n-th mount: one path component of at most 255
    bytes.
    """
    if len(container_id) > 200:
        container_id = sha256(container_id.encode()).hexdigest()
    return f"{container_id}.{part}"


def _rootfs(guest: dict[str, Any], container_id: str, bundle: str) -> Bind:
    path = guest["root"]["path"]
    host_path = path if path.startswith("/") else f"{bundle}/{path}"
    name = share_name(container_id, "rootfs")
    guest["root"]["path"] = f"{agent.SHARE_PATH}/{name}"
    return Bind(source=host_path, name=name)


def _copy(
    entry: dict[str, Any],
    index: int,
    container_id: str,
    bundle: str,
    is_small: Callable[[str], bool] | None,
) -> FileCopy | None:
    """The copy that stands for a bind of an engine's own file; None for any other mount."""
    if is_small is None or entry["destination"] not in _ENGINE_FILES or not is_bind(entry):
        return None
    source = str(entry.get("source") or "")
    source = source if source.startswith("/") else f"{bundle}/{source}"
    return FileCopy(source=source, name=share_name(container_id, str(index))) if is_small(source) else None


def _lockable(mounts: list[dict[str, Any]]) -> tuple[str, ...]:
    """The volumes: what is bound from the host, but for what engines bind into every container."""
    prefix = f"{agent.SHARE_PATH}/"
    return tuple(
        str(entry["source"])[len(prefix) :]
        for entry in mounts
        if str(entry.get("source") or "").startswith(prefix) and entry["destination"] not in _ENGINE_FILES
    )


def _namespaces(entries: list[dict[str, Any]], other_container: Callable[[int], str]) -> list[dict[str, Any]]:
    """Namespaces as the guest makes them. A host path means nothing in a VM, unless it is that of the process
    which stands for a container of the same VM: then that container's own is meant.

    network: wired by the host side. Any other with a path would share what is in another VM or on the host:
    refused, since create must fail when it cannot do what it was asked to.
    """
    made = []
    for index, entry in enumerate(entries):
        kind = entry["type"]
        if kind == "network":
            continue
        if not entry.get("path"):
            made.append({"type": kind})
            continue
        pid = _process_of(entry["path"], kind)
        other = other_container(pid) if pid else ""
        if not other:
            raise SpecError(
                f"config.json: linux.namespaces[{index}].path: a VM cannot join the {kind} namespace"
                f" {entry['path']!r}",
                hint="containers that share a namespace have to share the network too, and so the VM",
            )
        made.append({"type": kind, "path": f"container:{other}"})
    return made


def _process_of(path: str, kind: str) -> int:
    """PID of /proc/PID/ns/KIND, for those kinds that containers of one VM may share; else 0."""
    parts = path.split("/")
    if (
        len(parts) != 5
        or [*parts[:2], parts[3]] != ["", "proc", "ns"]
        or parts[4] not in _SHARED.get(kind, ())
    ):
        return 0
    return int(parts[2]) if parts[2].isascii() and parts[2].isdigit() else 0


def _share_ipc(guest: dict[str, Any], name: str) -> None:
    """Another container's IPC namespace in place of its own, and where it has a new /dev/shm, that one's."""
    spaces = guest["linux"]["namespaces"]
    guest["linux"]["namespaces"] = [n for n in spaces if n["type"] != "ipc"] + [{"type": "ipc", "path": name}]
    for index, made in enumerate(guest["mounts"]):
        if made["destination"] == "/dev/shm" and made["type"] == "tmpfs":
            guest["mounts"][index] = {**made, **_shared(made, name)}  # it may be the spec's own


def _shared(made: dict[str, Any], name: str) -> dict[str, Any]:
    """What the container `name` has there, in place of a new tmpfs."""
    kept = [option for option in made.get("options") or [] if "=" not in option]
    return {"type": "shared-mount", "source": name, "options": kept}


def _finish_mounts(guest: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """With another's IPC namespace comes its /dev/shm: engines bind the same tmpfs into both. What the guest
    mounts below a volume follows it.
    """
    path = next((n.get("path", "") for n in guest["linux"]["namespaces"] if n["type"] == "ipc"), "")
    for made, entry in zip(guest["mounts"], entries, strict=True) if path else ():
        if is_bind(entry) and made["type"] == "tmpfs":
            made.update(_shared(made, path))
    guest["mounts"] = [one for made in guest["mounts"] for one in (made, *made.pop("kernels", ()))]


def _hooks(guest: dict[str, Any], *, on_disk: bool) -> dict[str, Any]:
    hooks: dict[str, Any] = guest.get("hooks") or {}
    if on_disk and hooks.get("createContainer"):
        raise SpecError(
            "config.json: hooks.createContainer: the root file system is on a disk, where no hook of the host"
            " can change it",
            hint="rootfs = virtiofs, or a startContainer hook",
        )
    return hooks


def _hook(hook: dict[str, Any]) -> Hook:
    env = hook.get("env")
    return Hook(
        path=hook["path"],
        args=tuple(hook.get("args") or ()),
        env=None if env is None else tuple(env),
        timeout_s=hook.get("timeout"),
    )
