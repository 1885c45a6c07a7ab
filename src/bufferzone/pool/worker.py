"""The process of one VM that waits for a container, started by the pool's keeper; afterwards that container's
shim.

It has one thread until it is taken, so that it can enter the mount namespace of whoever takes it. It ends
with its keeper before that, and not after. What it says: `waiting` to the keeper, `ready PID` to the caller,
which answers `go`, then `listening`. Until `go` nothing of the container's was touched, so a caller that
hears nothing, or something else, starts a shim of its own.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import struct

from bufferzone import config, oci, state
from bufferzone.client.handshake import ready_line
from bufferzone.errors import BufferzoneError, HostError, VmmError
from bufferzone.linux import identity, process
from bufferzone.linux.ignoring import ignoring
from bufferzone.oci.host import settings_of
from bufferzone.pool import waiting_vm
from bufferzone.pool.listener import MOST_REQUEST
from bufferzone.shim import daemon, pool_start
from bufferzone.shim.listeners import listen
from bufferzone.shim.logs import log
from bufferzone.shim.stand_ins import StandIns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from bufferzone.pool.waiting_vm import WaitingVm
    from bufferzone.shim.arguments import Arguments

#: while nobody waits, somebody else's container may be running
_NICE = 10
_CAP_SYS_NICE = 23
_CALLER_S = 5.0


class Claim:
    """What a caller sent: the request, its connection and its mount namespace, which are owned, and where it
    is containerd's the socket to serve at.
    """

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.connection = socket.socket(fileno=fds[0])
        self.mount_namespace = fds[1]
        self.listener = socket.socket(fileno=fds[2]) if fds[2:] else None
        self.request: dict[str, Any] = json.loads(data)
        self.connection.settimeout(_CALLER_S)
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("3i", credentials)[0]

    def say(self, text: bytes) -> None:
        """One line; raises OSError when the caller is gone."""
        self.connection.sendall(text)

    def close(self) -> None:
        """Let the caller know that no more comes."""
        self.connection.close()
        os.close(self.mount_namespace)


def run(arguments: Arguments) -> int:
    """Make a VM in the directory -bundle, wait until it is taken or the keeper ends; the exit status.

    -shape is `config.shape_of` as JSON, -ready-fd the socket to the keeper.
    """
    process.die_with_parent(signal.SIGKILL)
    control = socket.socket(fileno=int(arguments.ready_fd))
    control.set_inheritable(False)
    daemon.be_a_shim()
    niced = _lower_priority()
    try:
        settings = config.Settings(**json.loads(arguments.shape))
        with waiting_vm.prepare(settings, arguments.bundle, arguments.state_root, log) as vm:
            control.send(b"waiting")
            claim = _await_claim(control, vm)
            if claim is not None:
                _be_taken(arguments, vm, claim, control, niced)
    except (BufferzoneError, OSError) as error:
        line = error.line() if isinstance(error, BufferzoneError) else str(error)
        log(line)
        # the keeper is gone, or the container's business begun
        with ignoring(errno.EPIPE, errno.ECONNRESET, errno.EBADF):
            control.send(line.encode())
        return 1
    finally:
        if arguments.socket:
            pool_start.leave(arguments.socket, os.path.join(arguments.state_root, arguments.id))
    return 0


def _lower_priority() -> bool:
    """Let others run first, where that can be undone; says so. CAP_SYS_NICE: setpriority(2)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        mask = next(line for line in file if line.startswith("CapEff:")).split()[1]
    if not int(mask, 16) >> _CAP_SYS_NICE & 1 or not identity.is_real_root():
        return False  # in a user namespace the capability is not for this
    os.nice(_NICE)
    return True


def _await_claim(control: socket.socket, vm: WaitingVm) -> Claim | None:
    """The claim the keeper passes on, or None when it has ended; raises when the VM did."""
    poll = select.poll()
    for fd in (control.fileno(), *vm.filenos()):
        poll.register(fd, select.POLLIN)
    if any(fd != control.fileno() for fd, _ in poll.poll()):
        raise VmmError("a waiting VM has ended", code="pool-died")
    data, fds, _, _ = socket.recv_fds(control, MOST_REQUEST, 3, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    return Claim(data, fds)


def _be_taken(arguments: Arguments, vm: WaitingVm, claim: Claim, control: socket.socket, niced: bool) -> None:
    """From the claim to the end of the container."""
    request = claim.request
    arguments.id, arguments.bundle = request["id"], request["bundle"]
    try:
        vm.enter(claim.mount_namespace)
        containerd = request.get("containerd")
        stand_ins = StandIns() if containerd else None  # a fork: before the first thread
        vm.thaw(arguments.id)
        if containerd:
            pool_start.take_settings(containerd)
        spec = oci.load(arguments.bundle, containerd=bool(containerd))
        settings = settings_of(spec)
        if unlike := vm.unlike(settings, spec):
            raise HostError(f"the waiting VM is not the one that is wanted: {unlike[0]}", code="pool-stale")
        makers = () if stand_ins is None else (stand_ins.pid,)
        _be_like(request, (os.getpid(), *vm.helpers, *makers), renice=niced)
        claim.say(b"ready %d\n" % os.getpid())
        if claim.connection.recv(8) != b"go\n":
            raise HostError("the caller gave up", code="pool-late")
        process.die_with_parent(0)
        control.close()
        directory = state.directory(arguments.state_root, arguments.id)
        sandbox = vm.give(arguments.id, spec, settings, directory, claim.pid, makers)
        listener = claim.listener or listen(directory)
        if containerd:
            pool_start.become_containerds(arguments, containerd, listener)
        state.write_owner(directory, os.getpid())
    except BaseException:
        claim.close()
        raise

    def announce() -> None:
        arguments.socket = (
            containerd["socket"] if containerd else ""
        )  # until now the caller may do without us
        claim.say(ready_line(b"listening", sandbox.cgroup.others))
        claim.close()

    daemon.run_sandbox(arguments, sandbox, listener, announce, stand_ins, hooks=spec.has_hooks)


def _be_like(request: dict[str, Any], pids: Iterable[int], *, renice: bool) -> None:
    """What a shim and its helpers would have inherited from the caller: oom_score_adj, and the niceness."""
    for pid in pids:
        with ignoring(errno.EACCES, errno.EPERM):  # below the lowest ever set takes CAP_SYS_RESOURCE
            _write(f"/proc/{pid}/oom_score_adj", str(int(request["oom_score_adj"])))
        if not renice:
            continue
        for thread in os.listdir(f"/proc/{pid}/task"):
            with ignoring(errno.ESRCH):
                os.setpriority(os.PRIO_PROCESS, int(thread), int(request["nice"]))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
