"""A child forked ahead of time, which waits for the process that it is to become.

After a fork the agent and its child pay for each page that they touch, a fault and often a copy: under TCG
most of an exec. This child has paid before anybody waits: its memory is its own, and for a PID namespace
that only a new process can enter it lends it to one (`linux/lent_memory`). There is one where `Prefork`
asks for it, which is in a VM that waits for its container: one at all times would cost 12 MiB, and each
exec its CPU time twice. It holds no descriptor but its channel and nothing of a container; in a clone of a
VM all it has in common with other clones is what the agent has, until execve(2). Who needs a user or a time
namespace, or has a lot to say, is forked by the agent (`launch`).
"""

from __future__ import annotations

import _socket
import os
import struct

from bufferzone.container import channel as ch
from bufferzone.container import child
from bufferzone.container.channel import ChildEnd
from bufferzone.container.child_spec import ChildSpec
from bufferzone.container.jsontext import encode, loads
from bufferzone.container.loop import warn
from bufferzone.errors import BufferzoneError, GuestError
from bufferzone.linux import lent_memory
from bufferzone.linux import process as lp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from bufferzone.container.loop import Loop

_FOREIGN = lp.CLONE_NEWUSER | lp.CLONE_NEWTIME  # not with shared memory
_MOST = 100 << 10  # bytes of a `ChildSpec`: a packet of the channel
_MOST_FDS = 16
_READY = b"+"


class ZygoteSlot:
    """Holds one child ready, once it was requested."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pid = 0
        self._sock: _socket.socket | None = None
        self._ready = False
        self._unsupported = False  # by this machine: see linux/lent_memory
        self._callbacks: list[Callable[[], None]] = []

    def fork_ahead(self) -> None:
        """Fork the next child, unless there is one. After a failure `launch` forks each process itself."""
        if self._sock is not None or self._unsupported:
            return
        ours, theirs = ch.pair()
        try:
            self._pid = os.fork()
        except OSError as error:
            warn(f"cannot fork ahead: {error.strerror}")
            ours.close()
            theirs.close()
            self._run_callbacks()
            return
        if self._pid == 0:
            _run_zygote(theirs)
        theirs.close()
        self._sock, self._ready = ours, False
        self._loop.watch(ours.fileno(), 1, self._heard)
        lent_memory.own_memory()

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Fork ahead, and call `callback` once a child is ready, or cannot be."""
        self._callbacks.append(callback)
        self.fork_ahead()
        if self._sock is None or self._ready:
            self._run_callbacks()

    def take(self, child_spec: ChildSpec) -> tuple[int, _socket.socket] | None:
        """Give `child_spec` to the child that waits: its pid and the agent's end of its channel; None where
        there is none, or none that can do it. With a PID namespace to enter, the channel tells another pid.
        """
        kinds = child_spec.unshares
        for _, kind in child_spec.joins:
            kinds |= kind
        if self._sock is None or not self._ready or kinds & _FOREIGN:
            return None
        packet, fds = _pack(child_spec), child_spec.descriptors()
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
            self._unsupported = not self._ready
            sock = self._sock
            self._forget()
            sock.close()
        self._run_callbacks()

    def _forget(self) -> None:
        assert self._sock is not None
        self._loop.unwatch(self._sock.fileno())
        self._sock, self._ready = None, False

    def _run_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def _pack(child_spec: ChildSpec) -> bytes:
    """`child_spec` as one packet; what an exec does not look at of its container's spec stays behind."""
    config = child_spec.config
    if child_spec.init_pid:
        config = {"linux": {"personality": (config.get("linux") or {}).get("personality")}}
    program, flags = child_spec.seccomp
    form = {
        "id": child_spec.id,
        "config": config,
        "process": child_spec.process if child_spec.init_pid else None,
        "init_pid": child_spec.init_pid,
        "unshares": child_spec.unshares,
        "kinds": [kind for _, kind in child_spec.joins],
        "stdio": child_spec.stdio is not None,
        "seccomp_flags": flags,
        "locks": child_spec.locks,
    }
    text = encode(form)
    return struct.pack("=I", len(text)) + text + program


def _unpack(packet: bytes, fds: tuple[int, ...]) -> ChildSpec:
    (length,) = struct.unpack_from("=I", packet)
    form = loads(packet[4 : 4 + length], "zygote")
    config, process, kinds = form["config"], form["process"], form["kinds"]
    joined, pipes = fds[1 : 1 + len(kinds)], fds[1 + len(kinds) :]
    return ChildSpec(
        form["id"],
        config,
        config.get("process") or {} if process is None else process,
        joins=list(zip(joined, kinds, strict=True)),
        unshares=form["unshares"],
        stdio=(pipes[0], pipes[1], pipes[2]) if form["stdio"] else None,
        procs=fds[0],
        init_pid=form["init_pid"],
        seccomp=(packet[4 + length :], form["seccomp_flags"]),
        locks=form["locks"],
    )


def _run_zygote(sock: _socket.socket) -> NoReturn:
    """The child: get ready, wait for a `ChildSpec`, become its process."""
    channel = ChildEnd(sock)
    try:
        child.be_nobody([channel.fileno()])
        lender = lent_memory.Lender()
        lent_memory.own_memory()
        channel.send(_READY)
        packet, ancillary, _, _ = sock.recvmsg(
            2 * _MOST, _socket.CMSG_LEN(4 * _MOST_FDS), _socket.MSG_CMSG_CLOEXEC
        )
        if not packet:
            os._exit(0)  # the agent is gone
        raw = b"".join(data for _, kind, data in ancillary if kind == _socket.SCM_RIGHTS)
        child_spec = _unpack(packet, struct.unpack(f"{len(raw) // 4}i", raw))
        _enter_pid_namespace(child_spec, channel, lender)
    except BufferzoneError as error:
        channel.fail(error)
    except BaseException as error:
        channel.fail(GuestError(f"cannot become the container process: {error}"))
    child.main(child_spec, channel)


def _enter_pid_namespace(child_spec: ChildSpec, channel: ChildEnd, lender: lent_memory.Lender) -> None:
    """What only a child can enter: become one, which goes on with our memory."""
    joins = [fd for fd, kind in child_spec.joins if kind == lp.CLONE_NEWPID]
    for fd in joins:
        lp.setns(fd, lp.CLONE_NEWPID)
    if child_spec.unshares & lp.CLONE_NEWPID:
        lp.unshare(lp.CLONE_NEWPID)
    if joins or child_spec.unshares & lp.CLONE_NEWPID:
        channel.send(ch.PID, str(lender.lend()).encode())
        channel.expect(ch.DONE)
