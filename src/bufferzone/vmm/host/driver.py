"""Starts the agent on the host, without a VM: for tests and for work on bufferzone. IT IS NOT A WALL.

What a container does here it does to the host's kernel, with no more between them than an OCI runtime's
namespaces. All else is as with a VM: shim, Task service, agent, channel, share. So whole flows and
their failures run in a fraction of a second. The agent is PID 1 of namespaces of its own and dies with the
shim; all that is in there dies with it. Only the setting `vmm = "host"` of a settings file chooses it, no
annotation. Refuses: what takes a machine, such as saving and restoring, NICs, disks, a kernel of its own.
"""

from __future__ import annotations

import os
import socket
import sys

from bufferzone import spawn
from bufferzone.errors import HostError
from bufferzone.linux import mount as mnt
from bufferzone.linux import process, rtnetlink
from bufferzone.linux.netlink import Netlink
from bufferzone.vmm.console import BoundedLog, Reader
from bufferzone.vmm.host import machine
from bufferzone.vmm.host.cgroup import VmCgroup
from bufferzone.vmm.host.machine import HostVm
from bufferzone.wire.agent import SHARE_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.model import Confinement, VmSpec

FEATURES = machine.FEATURES
_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from bufferzone.guest.__main__ import main; main()"
)
_NAMESPACES = process.CLONE_NEWNS | process.CLONE_NEWNET | process.CLONE_NEWUTS | process.CLONE_NEWIPC
_SAFE = mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC


def start(spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> HostVm:
    """Start the agent; see `vmm.interface.Driver`. It runs as root: there is nothing to confine it to.

    Raises `HostError`, also without a writable cgroup v2 hierarchy; then nothing runs.
    """
    log = BoundedLog(console_log_fd)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours, theirs = socket.socketpair()
    cgroup = None
    try:
        cgroup = VmCgroup()
        child = _start(spec, cgroup, theirs.fileno(), writer)
    except BaseException:
        for close in (ours.close, log.close, *([cgroup.remove] if cgroup is not None else [])):
            close()
        os.close(reader)
        raise
    finally:
        theirs.close()
        os.close(writer)
    return HostVm(child, ours, cgroup, Reader("console", reader, log))


def restore(spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> HostVm:
    """Raises `HostError`: what a container did on a kernel that lives on cannot be saved or restored."""
    if console_log_fd >= 0:
        os.close(console_log_fd)
    raise HostError(f"{FEATURES.label} cannot restore a VM", code="vmm-feature")


def fingerprint(spec: VmSpec) -> dict[str, Any]:
    """The kernel, which is the host's."""
    return {"kernel": os.uname().release}


def _start(spec: VmSpec, cgroup: VmCgroup, agent_fd: int, log_fd: int) -> spawn.Child:
    if len(spec.shares) > 1 or spec.nics or spec.disks:
        raise HostError(f"{FEATURES.label} has one share, no NIC and no disk", code="vmm-feature")
    share_fd = spec.shares[0].fd if spec.shares else -1

    def enter(talk: spawn.Conversation) -> None:
        _enter(talk, cgroup, share_fd=share_fd, agent_fd=agent_fd, log_fd=log_fd)

    arguments = ["--no-boot", "--fd", str(agent_fd), "--cgroup-root", cgroup.containers]
    command = [sys.executable, "-ISBXutf8", "-c", _PROGRAM, _SOURCE, *arguments]
    return spawn.start("agent", command, enter, pid_namespace=True)


def _enter(talk: spawn.Conversation, cgroup: VmCgroup, *, share_fd: int, agent_fd: int, log_fd: int) -> None:
    """What a boot does in a VM: a place of its own, and the share in it."""
    talk.step = "join the cgroup"
    cgroup.join()
    talk.step = "open the share"
    tree = mnt.open_tree("", at=share_fd) if share_fd >= 0 else -1
    talk.step = "create namespaces"
    process.unshare(_NAMESPACES)
    mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_SLAVE)
    talk.step = "mount"
    mnt.mount("proc", "/proc", "proc", _SAFE)
    mnt.mount("run", "/run", "tmpfs", mnt.MS_NOSUID | mnt.MS_NODEV, "mode=755")
    os.umask(0o022)
    if tree >= 0:
        os.makedirs(SHARE_PATH)
        mnt.set_attributes(tree, propagation=mnt.MS_SLAVE)  # what is shared later appears here too
        mnt.move_mount(tree, SHARE_PATH)
    talk.step = "bring up the loopback interface"
    with Netlink() as netlink:
        rtnetlink.set_link(netlink, 1, up=True)
    talk.step = "arrange descriptors"
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    for number, fd in enumerate((null, log_fd, log_fd)):
        os.dup2(fd, number)
    os.set_inheritable(agent_fd, True)
    process.die_with_parent()
