"""The requests that make a VM: `boot`, `save`, `load` are pure functions of a `VmSpec`, one row a device.

Written for Firecracker 1.12, x86-64. Paths are those of its jail. Left out on purpose: the metadata service
(`/mmds`: nothing in a guest of ours asks for one), CPU templates (a guest sees the host's CPU as with QEMU;
a saved VM is restored on the same model alone), the balloon (1.12 takes back nothing by it that the guest
frees by itself).
Refuses: anything that came from a guest.
"""

from __future__ import annotations

from bufferzone.wire.agent import CHANNEL_IS_VSOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.model import Nic, Rates, VmSpec

    #: method, path, body
    Request = tuple[str, str, Any]

#: where the jail shows the files of `VmSpec`; what is made at run time lies in `PLACE`
KERNEL, INITRD, MEMORY, SAVED_MEMORY = "/boot/kernel", "/boot/initrd", "/memory", "/saved-memory"
PLACE = "/run"
API, VSOCK, LOG, METRICS, STATE = "api", "vsock", "log", "metrics", "state"
#: each guest has its own vsock, so all may have the same number: the first that is not reserved
_GUEST_CID = 3
_REFILL_MS = 1000
#: more for the guest's command line: the agent calls by vsock; a reset is the only end there is, through the
#: keyboard controller, of which nothing else is emulated
_ARGUMENTS = (
    CHANNEL_IS_VSOCK,
    "reboot=k",
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
)


def arguments(program: str) -> list[str]:
    """The command line. Its system call filters are on: nothing says that they should not be."""
    return [
        program,
        "--api-sock",
        f"{PLACE}/{API}",
        "--log-path",
        f"{PLACE}/{LOG}",
        "--metrics-path",
        f"{PLACE}/{METRICS}",
        "--level",
        "Error",
    ]


def boot(spec: VmSpec, taps: tuple[str, ...]) -> list[Request]:
    """Configure and start; `taps` are the names of the taps of `spec.nics` in its network namespace."""
    return [
        _machine(spec),
        _source(spec),
        *(_drive(disk.name) for disk in spec.disks),
        *(_nic(nic, tap, spec.rates) for nic, tap in zip(spec.nics, taps, strict=True)),
        ("PUT", "/vsock", {"guest_cid": _GUEST_CID, "uds_path": f"{PLACE}/{VSOCK}"}),
        ("PUT", "/entropy", {}),
        ("PUT", "/actions", {"action_type": "InstanceStart"}),
    ]


def _machine(spec: VmSpec) -> Request:
    # no threads of one core: what the guest believes of its siblings would not be true
    body = {"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib, "smt": False}
    return "PUT", "/machine-config", body


def _source(spec: VmSpec) -> Request:
    words = [*spec.kernel_arguments, *_ARGUMENTS]
    body = {"kernel_image_path": KERNEL, "boot_args": " ".join(words)}
    if spec.initrd:
        body["initrd_path"] = INITRD
    return "PUT", "/boot-source", body


def slot(name: str) -> str:
    """The file in `PLACE` that the disk slot `name` shows."""
    return f"disk-{name}"


def _drive(name: str) -> Request:
    body = {
        "drive_id": name,
        "path_on_host": f"{PLACE}/{slot(name)}",
        # the root is ours: nothing is to be added to the kernel's command line
        "is_root_device": False,
        "is_read_only": True,
    }
    return "PUT", f"/drives/{name}", body


def _nic(nic: Nic, tap: str, rates: Rates) -> Request:
    body = {"iface_id": nic.name, "guest_mac": nic.mac, "host_dev_name": tap, **_nic_limiters(rates)}
    return "PUT", f"/network-interfaces/{nic.name}", body


def insert(name: str, rates: Rates) -> Request:
    """Have a drive look again at what its path shows, another file by now, and no faster than `rates`."""
    limiter = {"bandwidth": _bucket(rates.disk_bytes), "ops": _bucket(rates.disk_ops)}
    body = {"drive_id": name, "path_on_host": f"{PLACE}/{slot(name)}", "rate_limiter": limiter}
    return "PATCH", f"/drives/{name}", body


def limit(spec: VmSpec) -> list[Request]:
    """Give the NICs of a VM that was loaded its own limits: a saved one has those it was saved with."""
    return [
        ("PATCH", f"/network-interfaces/{nic.name}", {"iface_id": nic.name, **_nic_limiters(spec.rates)})
        for nic in spec.nics
    ]


def _nic_limiters(rates: Rates) -> dict[str, Any]:
    limiter = {"bandwidth": _bucket(rates.network_bytes)}
    return {"rx_rate_limiter": limiter, "tx_rate_limiter": limiter}


def _bucket(per_second: int) -> dict[str, int]:
    """A bucket that fills up in a second: each whole number of tokens a second is exact, and of what was not
    used before one second's worth may come at once. No first burst beyond that: a limit holds from the first
    byte. An empty one is no limit, and takes away one that was saved (vmm_config/mod.rs, BucketUpdate).
    """
    return {"size": per_second, "refill_time": _REFILL_MS if per_second else 0}


def run(running: bool) -> Request:
    """Let the guest run, or stand still."""
    return "PATCH", "/vm", {"state": "Resumed" if running else "Paused"}


def save() -> Request:
    """Write devices and memory of a VM that stands still."""
    body = {"snapshot_type": "Full", "snapshot_path": f"{PLACE}/{STATE}", "mem_file_path": MEMORY}
    return "PUT", "/snapshot/create", body


def load(spec: VmSpec, taps: tuple[str, ...]) -> Request:
    """Load a saved VM, whose memory is mapped privately: what a clone does not change is in no copy."""
    nics = [{"iface_id": nic.name, "host_dev_name": tap} for nic, tap in zip(spec.nics, taps, strict=True)]
    body = {
        "snapshot_path": f"{PLACE}/{STATE}",
        "mem_backend": {"backend_type": "File", "backend_path": SAVED_MEMORY},
        "enable_diff_snapshots": False,
        "resume_vm": False,
        "network_overrides": nics,
    }
    return "PUT", "/snapshot/load", body
