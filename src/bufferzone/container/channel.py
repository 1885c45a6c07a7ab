"""The socket between the agent and a child that is becoming a container process: one tag byte and a body
per packet.

The child's end is close-on-exec: end of file after START means that the program runs (or that the child is
gone). The agent's end is never blocking; the child's always is, and ends the child when the agent is gone.
"""

from __future__ import annotations

import _socket
import os
import struct

from bufferzone.wire import ttrpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: child to agent: write my id maps; this is the pid that counts; here is the terminal's master;
#: ready for START; apply the process limits, which takes the guest's root; here is what hears of my
#: calls for locks; an error as a ttrpc Status
MAP, PID, TERMINAL, READY, LIMITS, LOCKS, ERROR = b"U", b"P", b"T", b"R", b"L", b"K", b"E"
#: agent to child: what was requested is done; go on to the program
DONE, START = b"d", b"s"

_LIMIT = 64 << 10


def pair() -> tuple[_socket.socket, _socket.socket]:
    """(the agent's end, the child's end)."""
    kind = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
    ours.setblocking(False)
    return ours, theirs


def receive(sock: _socket.socket) -> tuple[bytes, bytes, int] | None:
    """(tag, body, descriptor or -1); an empty tag is end of file; None: nothing yet."""
    try:
        data, ancillary, _, _ = sock.recvmsg(_LIMIT, _socket.CMSG_LEN(4), _socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b"", b"", -1
    fd = -1
    for level, kind, raw in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fd = struct.unpack("i", raw[:4])[0]
    return data[:1], data[1:], fd


class ChildEnd:
    """The child's end."""

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """To the agent it is as if the program ran."""
        self._sock.close()

    def send(self, tag: bytes, body: bytes = b"", fd: int = -1) -> None:
        """Send one packet, with a descriptor if one is given."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        self._sock.sendmsg([tag + body], rights)

    def expect(self, tag: bytes) -> None:
        """Wait for `tag`; anything else means that the agent gave up: exit."""
        if self._sock.recv(1) != tag:
            os._exit(1)

    def request(self, tag: bytes) -> None:
        """Send `tag` and wait until the agent has done it."""
        self.send(tag)
        self.expect(DONE)

    def fail(self, error: BaseException, status: int = 1) -> NoReturn:
        """Report `error` and exit."""
        try:
            self.send(ERROR, ttrpc.status_of(error).encode()[: _LIMIT - 1])
        finally:
            os._exit(status)
