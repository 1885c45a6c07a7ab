"""Settings, stores and state directories: what weakens a wall or shows a guest's memory to others."""

from __future__ import annotations

import os
import stat

from bufferzone import config, programs, state
from bufferzone.audit.finding import Collector, Finding
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.config import Settings

#: annotations that may come with an image, and what they would let it decide
_GRAVE = {
    "bufferzone.kernel": "the guest's kernel",
    "bufferzone.initrd": "the guest's first file system",
    "bufferzone.image": "the guest image",
    "bufferzone.rootfs_image": "a file of the host that is shown as a disk",
    "bufferzone.publish": "ports of the host",
    "bufferzone.kernel_arguments": "arguments of the guest's kernel",
}


def check(root: str) -> list[Finding]:
    """Everything that the settings' files and our directories say; `root` is the state root."""
    findings = Collector("settings")
    try:
        settings = config.load()
    except BufferzoneError as error:
        findings.add("settings-unreadable", "medium", error.line())
        settings = config.Settings()
    check_settings(settings, findings)
    for path in (config.DIRECTORY, *config.default_paths()):
        _not_others(path, findings, "settings-writable", "others decide what runs as root")
    _not_others(programs.PLACE, findings, "program-writable", "others decide what runs as root")
    _stores(settings, findings)
    _states(root, findings)
    return findings.found


def check_settings(settings: Settings, findings: Collector) -> None:
    """What the settings decide."""
    if settings.vmm == "host":
        findings.add(
            "vmm-host", "high", 'vmm = "host": containers run on the host, without a VM', 'vmm = "qemu"'
        )
    if settings.kvm != "require":
        message = f'kvm = "{settings.kvm}": where KVM fails, guests are emulated'
        findings.add("kvm-policy", "low", message, 'kvm = "require"')
    for name in settings.allow_annotations:
        if name in _GRAVE:
            message = f"{name} is allowed: an image may choose {_GRAVE[name]}"
            findings.add("annotation", "medium", message, "allow_annotations")
    if settings.host_network == "passt":
        message = 'host_network = "passt": those containers reach what the host reaches, as the host'
        findings.add("host-network", "low", message)
    if not settings.egress:
        message = "no egress policy: a container reaches all that its network reaches"
        findings.add("egress-open", "info", message, "egress, see docs/egress.md")
    if not settings.annotation_memory_mib or not settings.annotation_vcpus:
        message = "an annotation may ask for half of the memory or all CPUs"
        findings.add("annotation-size", "info", message, "annotation_memory_mib, annotation_vcpus")


def _stores(settings: Settings, findings: Collector) -> None:
    base = os.path.dirname(settings.image_store)
    _not_others(
        settings.image_store, findings, "images-writable", "who writes it decides what every guest boots"
    )
    for name in ("templates", "sandboxes", "disks", "roots"):
        _private(os.path.join(base, name), findings, f"{name}-readable", "it holds guests' memory or files")


def _states(root: str, findings: Collector) -> None:
    _private(root, findings, "state-readable", "sockets, logs and states of all containers are in it")
    for id in state.list_ids(root):
        directory = os.path.join(root, id)
        _private(directory, findings, "state-readable", "sockets, logs and states are in it")


def _find(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _foreign(found: os.stat_result) -> bool:
    return found.st_uid not in (0, os.geteuid())


def _not_others(path: str, findings: Collector, id: str, why: str) -> None:
    """Nobody else may write it; a directory with a link in its place counts as it is."""
    found = _find(path)
    if found is not None and (_foreign(found) or (found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode))):
        mode = stat.S_IMODE(found.st_mode)
        findings.add(
            id, "high", f"{path!a} may be written by others (uid {found.st_uid}, mode {mode:o}): {why}"
        )


def _private(path: str, findings: Collector, id: str, why: str) -> None:
    """Nobody else may even look."""
    found = _find(path)
    if found is not None and (_foreign(found) or found.st_mode & 0o077):
        mode = stat.S_IMODE(found.st_mode)
        findings.add(id, "high", f"{path!a} is open to others (uid {found.st_uid}, mode {mode:o}): {why}")
