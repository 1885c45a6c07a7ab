"""Starts the agent on the host, without a VM: for tests and for work on bufferzone. IT IS NOT A WALL.

What a container does here it does to the host's kernel, with no more between them than an OCI runtime's
namespaces. All else is as with a VM: shim, Task service, agent, channel, share. So whole flows and
their failures run in a fraction of a second. The agent is PID 1 of namespaces of its own and dies with the
shim; all that is in there dies with it. Only the setting `vmm = "host"` of a settings file chooses it, no
annotation. A root file system may be on a disk, which is a loop device, and then it is saved and restored,
but for what no file can hold: the program begins again. Refuses: what takes a machine, such as NICs.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack

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
_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from bufferzone.guest.hosted import main; main()"
_NAMESPACES = process.CLONE_NEWNS | process.CLONE_NEWNET | process.CLONE_NEWUTS | process.CLONE_NEWIPC
_SAFE = mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC


def start(spec: VmSpec, confinement: Confinement, *, console_log_fd: int = -1) -> HostVm:
    """Start the agent; see `vmm.interface.Driver`. It runs as root: there is nothing to confine it to.

    Raises `HostError`, also without a writable cgroup v2 hierarchy; then nothing runs.
    """
    log = BoundedLog(console_log_fd)
    with ExitStack() as stack, ExitStack() as failed:
        failed.callback(log.close)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        failed.callback(os.close, reader)
        stack.callback(os.close, writer)
        agent, agent_there = socket.socketpair()
        machine, machine_there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for ours, theirs in ((agent, agent_there), (machine, machine_there)):
            failed.enter_context(ours)
            stack.enter_context(theirs)
        memory_fd = _open_memory(stack, spec.memory)
        cgroup = VmCgroup()
        failed.callback(cgroup.remove)
        child = _start(spec, cgroup, (agent_there.fileno(), machine_there.fileno(), memory_fd), writer)
        failed.pop_all()
        return HostVm(child, agent, machine, cgroup, Reader("console", reader, log))


#: an agent that is told its state before it makes anything
restore = start


def _open_memory(stack: ExitStack, path: str) -> int:
    """The file that holds what is saved; -1: it is never saved. Raises `HostError`."""
    if not path:
        return -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}", code="memory") from error
    stack.callback(os.close, fd)
    return fd


def fingerprint(spec: VmSpec) -> dict[str, Any]:
    """The kernel, which is the host's."""
    return {"kernel": os.uname().release}


def _start(spec: VmSpec, cgroup: VmCgroup, fds: tuple[int, int, int], log_fd: int) -> spawn.Child:
    """`fds`: the agent's ends of its two channels, and its memory."""
    if len(spec.shares) > 1 or spec.nics or len(spec.disks) > 1:
        raise HostError(f"{FEATURES.label} has one share, one disk and no NIC", code="vmm-feature")
    share_fd = spec.shares[0].fd if spec.shares else -1

    def enter(talk: spawn.Conversation) -> None:
        _enter(talk, cgroup, share_fd=share_fd, kept=fds, log_fd=log_fd)

    names = ("--fd", "--machine", "--memory")
    arguments = ["--cgroup-root", cgroup.containers]
    arguments += [word for name, fd in zip(names, fds, strict=True) if fd >= 0 for word in (name, str(fd))]
    command = [sys.executable, "-ISXutf8", "-c", _PROGRAM, _SOURCE, *arguments]
    return spawn.start("agent", command, enter, pid_namespace=True)


def _enter(
    talk: spawn.Conversation, cgroup: VmCgroup, *, share_fd: int, kept: tuple[int, ...], log_fd: int
) -> None:
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
    for fd in kept:
        if fd >= 0:
            os.set_inheritable(fd, True)
    process.die_with_parent()
