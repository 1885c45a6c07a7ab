"""A child forked ahead of time, which waits for the process that it is to become.

After a fork the agent and its child pay for each page that they touch, a fault and often a copy: under TCG
most of an exec. This child has paid before anybody waits: its memory is its own, and for a PID namespace
that only a new process can enter it lends it to one (`linux/share`). There is one where `Prepare` asks for
it, which is in a VM that waits for its container: one at all times would cost 12 MiB, and each exec its CPU
time twice. It holds no descriptor but its channel and nothing of a container; in a clone of a VM all it has
in common with other clones is what the agent has, until execve(2). Who needs a user or a time namespace, or
has a lot to say, is forked by the agent (`launch`).
"""

from __future__ import annotations

import _socket
import os
import struct

from bufferzone.container import channel as ch
from bufferzone.container import child
from bufferzone.container.channel import ChildEnd
from bufferzone.container.child_spec import Task
from bufferzone.container.jsontext import encode, loads
from bufferzone.container.loop import warn
from bufferzone.errors import BufferzoneError, GuestError
from bufferzone.linux import process as lp
from bufferzone.linux import share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from bufferzone.container.loop import Loop

_FOREIGN = lp.CLONE_NEWUSER | lp.CLONE_NEWTIME  # not with shared memory
_MOST = 100 << 10  # bytes of a job: a packet of the channel
_MOST_FDS = 16
_READY = b"+"


class Nursery:
    """Holds one child ready, once it was asked for one."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pid = 0
        self._sock: _socket.socket | None = None
        self._ready = False
        self._useless = False  # this machine cannot: see linux/share
        self._asked: list[Callable[[], None]] = []

    def refill(self) -> None:
        """Fork the next child, unless there is one. A failure leaves everything to `launch`."""
        if self._sock is not None or self._useless:
            return
        ours, theirs = ch.pair()
        try:
            self._pid = os.fork()
        except OSError as error:
            warn(f"cannot fork ahead: {error.strerror}")
            ours.close()
            theirs.close()
            self._tell()
            return
        if self._pid == 0:
            _wait_for_job(theirs)
        theirs.close()
        self._sock, self._ready = ours, False
        self._loop.watch(ours.fileno(), 1, self._heard)
        share.own_memory()

    def when_ready(self, then: Callable[[], None]) -> None:
        """Call `then` once a child waits, or cannot."""
        self._asked.append(then)
        self.refill()
        if self._sock is None or self._ready:
            self._tell()

    def take(self, task: Task) -> tuple[int, _socket.socket] | None:
        """Give `task` to the child that waits: its pid and the agent's end of its channel; None where there
        is none, or none that can do it. With a PID namespace to enter, the channel tells another pid.
        """
        kinds = task.unshares
        for _, kind in task.joins:
            kinds |= kind
        if self._sock is None or not self._ready or kinds & _FOREIGN:
            return None
        packet, fds = _pack(task), task.descriptors()
        if len(packet) > _MOST or len(fds) > _MOST_FDS:
            return None
        pid, sock = self._pid, self._sock
        self._forget()
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        try:
            sock.sendmsg([packet], rights)
        except OSError:  # it has ended
            sock.close()
            return None
        return pid, sock

    def _heard(self, events: int) -> None:
        """It is ready, or has ended."""
        assert self._sock is not None
        packet = ch.receive(self._sock)
        if packet is None:
            return
        if packet[0] == _READY:
            self._ready = True
        else:
            self._useless = not self._ready
            sock = self._sock
            self._forget()
            sock.close()
        self._tell()

    def _forget(self) -> None:
        assert self._sock is not None
        self._loop.unwatch(self._sock.fileno())
        self._sock, self._ready = None, False

    def _tell(self) -> None:
        asked, self._asked = self._asked, []
        for then in asked:
            then()


def _pack(task: Task) -> bytes:
    """`task` as one packet; what an exec does not look at of its container's spec stays behind."""
    spec = task.spec
    if task.init_pid:
        spec = {"linux": {"personality": (spec.get("linux") or {}).get("personality")}}
    form = {
        "id": task.id,
        "spec": spec,
        "process": task.process if task.init_pid else None,
        "init_pid": task.init_pid,
        "unshares": task.unshares,
        "kinds": [kind for _, kind in task.joins],
        "stdio": task.stdio is not None,
        "seccomp_flags": task.seccomp_flags,
        "locks": task.locks,
    }
    text = encode(form)
    return struct.pack("=I", len(text)) + text + task.seccomp


def _unpack(packet: bytes, fds: tuple[int, ...]) -> Task:
    (length,) = struct.unpack_from("=I", packet)
    form = loads(packet[4 : 4 + length], "job")
    process = form["process"]
    task = Task(form["id"], form["spec"], form["spec"].get("process") or {} if process is None else process)
    task.init_pid, task.unshares = form["init_pid"], form["unshares"]
    task.seccomp, task.seccomp_flags = packet[4 + length :], form["seccomp_flags"]
    task.locks = form["locks"]
    task.procs, rest = fds[0], fds[1:]
    task.joins = list(zip(rest, form["kinds"], strict=False))
    if form["stdio"]:
        stdin, stdout, stderr = rest[len(form["kinds"]) :]
        task.stdio = (stdin, stdout, stderr)
    return task


def _wait_for_job(sock: _socket.socket) -> NoReturn:
    """The child: get ready, wait, become the process of the job."""
    channel = ChildEnd(sock)
    try:
        child.be_nobody([channel.fileno()])
        lender = share.Lender()
        share.own_memory()
        channel.send(_READY)
        packet, ancillary, _, _ = sock.recvmsg(
            2 * _MOST, _socket.CMSG_LEN(4 * _MOST_FDS), _socket.MSG_CMSG_CLOEXEC
        )
        if not packet:
            os._exit(0)  # the agent is gone
        raw = b"".join(data for _, kind, data in ancillary if kind == _socket.SCM_RIGHTS)
        task = _unpack(packet, struct.unpack(f"{len(raw) // 4}i", raw))
        _enter_pid_namespace(task, channel, lender)
    except BufferzoneError as error:
        channel.die(error)
    except BaseException as error:
        channel.die(GuestError(f"cannot become the container process: {error}"))
    child.main(task, channel)


def _enter_pid_namespace(task: Task, channel: ChildEnd, lender: share.Lender) -> None:
    """What only a child can enter: become one, which goes on with our memory."""
    joins = [fd for fd, kind in task.joins if kind == lp.CLONE_NEWPID]
    for fd in joins:
        lp.setns(fd, lp.CLONE_NEWPID)
    if task.unshares & lp.CLONE_NEWPID:
        lp.unshare(lp.CLONE_NEWPID)
    if joins or task.unshares & lp.CLONE_NEWPID:
        channel.send(ch.PID, str(lender.lend()).encode())
        channel.wait(ch.DONE)
