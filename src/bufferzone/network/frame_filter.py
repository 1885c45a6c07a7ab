"""Between a guest and passt: what the guest may send there, frame by frame.

passt connects to whatever address a frame names, the host's loopback too: that of Debian 12 answers a forged
frame for 127.0.0.1 as it would any other. Through here pass ARP, and IPv4 from the guest's own address to
unicast addresses which are neither of the host's loopback nor of the link (cloud metadata). What passt sends
goes back as it is, and with it the ACKs that it leaves out (`handshake`). An egress policy (`passt_policy`)
allows less.

Both sides are streams of frames, each after its length in 32 bits (QEMU's docs/interop, passt(1)).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque

from bufferzone.linux import process
from bufferzone.network import handshake, passt_policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LENGTH = 4
#: an Ethernet header and what an IPv4 packet may be
MOST = 14 + 65535
_BUFFER = 4 * (_LENGTH + MOST)
_ARP, _IPV4 = 0x0806, 0x0800
#: type, version and header length, source, destination
_HEADER = struct.Struct("!12xHB11xII")
_LEAST_ARP = 42
_MOST_ANSWERS = 256  # that wait for passt's frame to be through; what has none is sent again


def _network(text: str) -> tuple[int, int]:
    address, _, prefix = text.partition("/")
    mask = (1 << 32) - (1 << (32 - int(prefix)))
    return int.from_bytes(socket.inet_aton(address), "big"), mask


#: "this host" (Linux takes 0.0.0.0 for loopback), loopback, link-local, multicast, reserved and broadcast
_CLOSED = [_network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets that hold as much as the kernel lets them: passt drops what does not fit,
    and the default is three large frames.
    """
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    return ends


class FrameFilter:
    """Two connected stream sockets, the guest's and passt's, owned. `address` is the guest's own. `policy`:
    what of the rest it may send, None: all of it; `gateway` tells it of what it may not. `forged` counts
    frames that are refused without any policy.
    """

    def __init__(
        self,
        guest: socket.socket,
        passt: socket.socket,
        address: str,
        policy: passt_policy.Policy | None = None,
        gateway: str = "",
    ) -> None:
        self._guest, self._passt, self.policy = guest, passt, policy
        self._gateway = socket.inet_aton(gateway) if gateway else b""
        self.forged = 0
        self._address = int.from_bytes(socket.inet_aton(address), "big")
        self._threads: Sequence[threading.Thread] = ()
        self._answers: deque[bytes] = deque(maxlen=_MOST_ANSWERS)
        self._back_lock = threading.Lock()  # between two frames to the guest

    def start(self) -> None:
        """Let frames through from now on, until either side ends; then both do."""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name="frame filter", daemon=True)
            for work in (self._out, self._back)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End both sides."""
        self._shut()
        for thread in self._threads:
            thread.join()
        self._guest.close()
        self._passt.close()

    def allows(self, frame: memoryview) -> bool:
        """Whether the guest may send this Ethernet frame."""
        if len(frame) < _HEADER.size:
            return False
        kind, version, source, destination = _HEADER.unpack_from(frame)
        if kind == _ARP:
            return len(frame) >= _LEAST_ARP
        if kind != _IPV4 or version >> 4 != 4 or source != self._address:
            return False
        return not any(destination & mask == network for network, mask in _CLOSED)

    def _passes(self, frame: memoryview) -> bool:
        """`allows`, and the policy; what that refuses is answered."""
        if not self.allows(frame):
            self.forged += 1
            return False
        if self.policy is None or bytes(frame[12:14]) != b"\x08\x00" or self.policy.allows(frame):
            return True
        if answer := passt_policy.refusal(frame, self._gateway):
            self._answers.append(answer)
        return False

    def _run(self, work: Callable[[], None]) -> None:
        process.hold_only()
        try:
            work()
        except OSError:
            pass  # the other side ended in the middle
        finally:
            self._shut()

    def _shut(self) -> None:
        for sock in (self._guest, self._passt):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already

    def _back(self) -> None:
        _copy(self._passt, self._give)

    def _out(self) -> None:
        _copy(self._guest, self._pass)

    def _give(self, data: memoryview) -> int:
        """Send on the whole frames in `data`; how many bytes they are."""
        ends = _ends(data)
        whole = max(ends, default=0)
        if self.policy is not None:
            at = 0
            for end in ends:
                self.policy.came(data[at + _LENGTH : end])
                at = end
        with self._back_lock:
            self._guest.sendall(data[:whole])
        self._send_answers()
        return whole

    def _send_answers(self) -> None:
        """Whoever sends to the guest at that moment sends them after it."""
        while self._answers and self._back_lock.acquire(blocking=False):
            try:
                while self._answers:
                    answer = self._answers.popleft()
                    self._guest.sendall(len(answer).to_bytes(_LENGTH, "big") + answer)
            finally:
                self._back_lock.release()

    def _pass(self, data: memoryview) -> int:
        """Send on what is allowed of the whole frames in `data`, in as few pieces as can be; how many bytes
        they are.
        """
        begin = at = 0
        for end in _ends(data):
            frame = data[at + _LENGTH : end]
            if not self._passes(frame):
                self._passt.sendall(data[begin:at])
                begin = end
            elif ack := handshake.ack_of(frame):
                self._answers.append(ack)
            at = end
        self._passt.sendall(data[begin:at])
        self._send_answers()
        return at


def _copy(source: socket.socket, take: Callable[[memoryview], int]) -> None:
    """Until the end, or something that is no frame: `take` tells how much of what came it has used."""
    buffer, filled = memoryview(bytearray(_BUFFER)), 0
    while count := source.recv_into(buffer[filled:]):
        filled += count
        try:
            used = take(buffer[:filled])
        except ValueError:
            return  # no VMM of ours and no passt sends such a thing
        rest = bytes(buffer[used:filled])
        filled = len(rest)
        buffer[:filled] = rest


def _ends(data: memoryview) -> list[int]:
    """Where each whole frame in `data` ends. Raises ValueError where something is no frame."""
    found, at = [], 0
    while len(data) - at >= _LENGTH:
        length = int.from_bytes(data[at : at + _LENGTH], "big")
        if not 0 < length <= MOST:
            raise ValueError(length)
        at += _LENGTH + length
        if at > len(data):
            break
        found.append(at)
    return found
