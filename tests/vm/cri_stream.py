"""The streaming half of the CRI: exec, attach and port-forward over a WebSocket, as the API server asks.

Every message is one byte, the channel, and data. Source: RFC 6455; Kubernetes' `v4.channel.k8s.io`.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import subprocess
import sys
from urllib.parse import urlsplit

STDIN, STDOUT, STDERR, STATUS, RESIZE = range(5)
_PROTOCOL = "v4.channel.k8s.io"
#: connects in another network namespace: the socket is passed back, and is of that namespace
_DIAL = "import socket, sys; s = socket.create_connection((sys.argv[2], int(sys.argv[3])), 60);"
_DIAL += "socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b'x'], [s.fileno()])"


class Stream:
    """A connection to the streaming server in the network namespace of `pid`. `close` it, or use `with`."""

    def __init__(self, pid: int, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._socket = _connect(pid, parts.hostname or "", parts.port or 80)
        self._socket.settimeout(timeout_s)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {parts.path}?{parts.query} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            f"Sec-WebSocket-Protocol: {_PROTOCOL}",
        )
        self._socket.sendall("\r\n".join((*lines, "", "")).encode())
        status = self._file.readline()
        assert b" 101 " in status, (status, self._file.read(500))
        while self._file.readline().strip():
            pass
        self.ended = False

    def send(self, channel: int, data: bytes) -> None:
        self._frame(2, bytes([channel]) + data)

    def end(self) -> None:
        """Tell that nothing more comes."""
        self._frame(8, b"\x03\xe8")

    def receive(self) -> tuple[int, bytes]:
        """The next (channel, data); (-1, b"") at the end."""
        while True:
            head = self._file.read(2)
            if len(head) < 2:
                return -1, b""
            size = head[1] & 0x7F
            if size > 125:
                text = self._file.read(2 if size == 126 else 8)
                size = int.from_bytes(text, "big")
            data = self._file.read(size)
            if head[0] & 0xF == 8:
                return -1, b""
            if head[0] & 0xF in (1, 2) and data:
                return data[0], data[1:]

    def until(self, channel: int, wanted: bytes) -> bytes:
        """What comes on one channel until `wanted` is in it; a prompt may come along."""
        seen = b""
        while wanted not in seen:
            number, data = self.receive()
            assert number >= 0, (seen, wanted)
            seen += data if number == channel else b""
        return seen

    def rest(self) -> dict[int, bytes]:
        """All that comes until the end, by channel."""
        found: dict[int, bytes] = {}
        while (pair := self.receive())[0] >= 0:
            found[pair[0]] = found.get(pair[0], b"") + pair[1]
        return found

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _frame(self, kind: int, data: bytes) -> None:
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self._socket.sendall(bytes([0x80 | kind]) + size + mask + masked)


def _connect(pid: int, host: str, port: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = ["nsenter", f"--net=/proc/{pid}/ns/net", "--", sys.executable, "-c", _DIAL]
        words += [str(theirs.fileno()), host, str(port)]
        subprocess.run(words, pass_fds=[theirs.fileno()], check=True, timeout=120)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=fds[0])
