"""Starts Firecracker in our jail, see `vmm.interface.Driver`. Refuses: more in the jail than one VM needs.

Its own `jailer` is not used. It changes root and user, makes a PID namespace and a cgroup, and closes what it
inherits: all of that the jail of every helper does too. To that come here a read-only root, no capability,
IPC and UTS namespaces, a network namespace with one tap, Landlock, an end with the shim, and a list of system
calls around Firecracker's own. The jailer has none of these, and wants real root, a directory for each VM
into which files are copied, and short paths. Firecracker's own filters, one for each kind of thread, are on
in both.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from bufferzone import allowlists, jail, vmmstore
from bufferzone.errors import HostError
from bufferzone.linux import landlock
from bufferzone.vmm.console import BoundedLog, Reader
from bufferzone.vmm.firecracker import process, requests
from bufferzone.vmm.firecracker.api import Api
from bufferzone.vmm.firecracker.place import Place
from bufferzone.vmm.firecracker.process import Firecracker
from bufferzone.vmm.firecracker.taps import LentTaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.model import Confinement, VmSpec

FEATURES = process.FEATURES
#: of musl, which its releases are built with: it takes a vCPU out of the guest, so that it can be paused
_KICK = 35
_TUN = "net/tun"


def start(spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> Firecracker:
    """Start Firecracker for `spec`, in its jail; `greet` has it boot. Raises `HostError`: nothing runs."""
    return _launch(spec, confinement, console_log_fd)


#: a saved VM is one that `load` is called for: the same process, of which nothing boots
restore = start


def fingerprint(spec: VmSpec) -> dict[str, Any]:
    """The requests, and the program as it is installed. Raises `HostError`."""
    program = vmmstore.find(FEATURES.name)
    found, taps = os.stat(program), tuple(nic.name for nic in spec.nics)
    return {
        "requests": [*requests.arguments(program), *requests.boot(spec, taps)],
        "files": [program, found.st_size, found.st_mtime_ns],
    }


def _launch(spec: VmSpec, confinement: Confinement, console_log_fd: int) -> Firecracker:
    log = BoundedLog(console_log_fd)
    with ExitStack() as stack, ExitStack() as failed:
        failed.callback(log.close)
        check(spec)
        program = vmmstore.find(FEATURES.name)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        failed.callback(os.close, reader)
        stack.callback(os.close, writer)
        place = Place(spec, confinement.uid)
        failed.callback(place.close)
        lent = LentTaps(spec, confinement.uid)
        failed.callback(lent.take_back)
        confined = describe_jail(
            program, spec, confinement, place_fd=place.fd, network=lent.network, log_fd=writer
        )
        child = jail.start(requests.arguments(program), confined)
        failed.pop_all()
    if spec.mapped_memory < 0:
        lent.settle()
    words, counted = place.readers()
    return Firecracker(
        child,
        place,
        Api(place.inside(requests.API)),
        spec,
        lent,
        console=Reader("console", reader, log),
        words=Reader("vmm-log", words, BoundedLog()),
        counted=Reader("vmm-metrics", counted, BoundedLog()),
    )


def check(spec: VmSpec) -> None:
    """Raise `HostError` for what no Firecracker has: the sandbox's plan should not have come to it."""
    problem = ""
    if spec.accelerator != "kvm":
        problem = "runs with KVM alone"
    elif spec.shares:
        problem = "cannot share files of the host with a VM"
    elif any(not nic.is_tap for nic in spec.nics):
        problem = "has no NIC on a stream socket"
    elif len(spec.nics) > 1:
        problem = "has one NIC here"
    if problem:
        raise HostError(f"{FEATURES.label} {problem}", hint="vmm = qemu", code="vmm-feature")


def describe_jail(
    program: str, spec: VmSpec, confinement: Confinement, *, place_fd: int, network: int, log_fd: int
) -> jail.Jail:
    """Firecracker's jail: the program, kernel and initrd read-only, /dev/kvm, its place; and /dev/net/tun
    where it has a tap, in whose network namespace (a descriptor) it is. In place of kernel and initrd a saved
    VM's memory; the file for its own memory, where it will be saved.

    In the place it may write to what is there, and make sockets.
    """
    binds = [
        jail.JailBind(source=program, target=program),
        jail.JailBind(source=place_fd, target=requests.PLACE, writable=True, follow=True),
    ]
    if spec.memory:
        binds.append(jail.JailBind(source=spec.memory, target=requests.MEMORY, writable=True))
    if spec.mapped_memory >= 0:
        binds.append(jail.JailBind(source=spec.mapped_memory, target=requests.SAVED_MEMORY))
    else:
        binds.append(jail.JailBind(source=spec.kernel, target=requests.KERNEL))
    if spec.initrd and spec.mapped_memory < 0:
        binds.append(jail.JailBind(source=spec.initrd, target=requests.INITRD))
    devices = ("kvm", *((_TUN,) if spec.nics else ()))
    return jail.Jail(
        name=FEATURES.name,
        uid=confinement.uid,
        gid=confinement.gid,
        log_fd=log_fd,
        calls=allowlists.FIRECRACKER,
        binds=tuple(binds),
        devices=("null", "urandom"),
        owned_devices=devices,
        namespaces=("ipc", "uts", "pid") if network >= 0 else ("ipc", "uts", "net", "pid"),
        network=network,
        heeds=(_KICK,),
        cgroups=confinement.cgroups,
        restricted=landlock.Rules(
            writable=(
                "/dev/null",
                *(f"/dev/{name}" for name in devices),
                requests.PLACE,
                *([requests.MEMORY] if spec.memory else []),
            ),
            sockets=(requests.PLACE,),
        ),
    )
