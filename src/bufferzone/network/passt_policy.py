"""The egress policy of a guest behind passt: which of its packets pass, and what is answered to the others.

What `ruleset` has nft do for a tap, done by hand for each packet on its way to passt, whatever the guest says
of it: a packet passes where a rule allows its destination, or where it answers somebody who called the guest
through a published port. Nothing passes in fragments or with IPv4 options: it would hide its port.
Source: RFC 791, 792, 768, 9293 (3.10.7: what a reset carries).
"""

from __future__ import annotations

import struct

from bufferzone.network.handshake import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.egress import Rule

_ICMP, _TCP, _UDP = 1, 6, 17
_NUMBERS = {"": 0, "icmp": _ICMP, "tcp": _TCP, "udp": _UDP}
_ETHERNET, _IP = 14, 20
#: of an IPv4 header: version and length, total length, fragment, protocol, source, destination
_HEADER = struct.Struct("!BxHxxHxBxx4s4s")
_PORTS = struct.Struct("!HH")
_SEGMENT = struct.Struct("!HHIIBB")  # ports, sequence, acknowledgment, header length, flags
_FRAGMENT = 0x3FFF  # more fragments, and the offset
_SYN, _RST, _ACK, _FIN = 0x02, 0x04, 0x10, 0x01
_ECHO = 8
_UNREACHABLE, _PROHIBITED = 3, 13  # communication administratively prohibited
#: callers that are remembered; the one that has been silent for longest is forgotten first
_MOST_CALLERS = 16384


class _Packet:
    """IPv4 in an Ethernet frame; ports, or type and code of ICMP, are 0 where it has none."""

    __slots__ = ("destination", "far", "flags", "near", "protocol", "source")
    source: bytes
    destination: bytes

    def __init__(self, frame: memoryview) -> None:
        """Raises ValueError for one that the policy does not look into."""
        if len(frame) < _ETHERNET + _IP:
            raise ValueError("short")
        version, total, fragment, self.protocol, self.source, self.destination = _HEADER.unpack_from(
            frame, _ETHERNET
        )
        if version != 0x45 or fragment & _FRAGMENT or not _IP <= total <= len(frame) - _ETHERNET:
            raise ValueError("options, a fragment, or cut off")
        start, size = _ETHERNET + _IP, total - _IP
        self.near = self.far = self.flags = 0
        if self.protocol == _TCP:
            if size < 20:
                raise ValueError("short")
            self.near, self.far, _, _, _, self.flags = _SEGMENT.unpack_from(frame, start)
        elif self.protocol in (_UDP, _ICMP):
            if size < 8:
                raise ValueError("short")
            if self.protocol == _UDP:
                self.near, self.far = _PORTS.unpack_from(frame, start)
            else:
                self.near = frame[start]


class Policy:
    """Rules, and who has called. `denied` counts packets. One thread gives it the guest's frames, another
    passt's.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Those of IPv6 allow nothing: passt's network is IPv4."""
        self.denied = 0
        self._callers: dict[tuple[int, bytes, int, int], None] = {}
        self._rules = [
            (_NUMBERS[rule.protocol], rule.network, ~0 << (32 - rule.bits), rule.ports)
            for rule in rules
            if rule.version == 4
        ]

    def came(self, frame: memoryview) -> None:
        """A frame of passt's: whoever calls the guest is answered."""
        if bytes(frame[12:14]) != b"\x08\x00":
            return
        try:
            packet = _Packet(frame)
        except ValueError:
            return
        caller = packet.protocol, bytes(packet.source), packet.near, packet.far
        known = caller in self._callers
        begins = packet.protocol == _UDP or (packet.protocol == _TCP and packet.flags & (_SYN | _ACK) == _SYN)
        if known or begins:
            self._callers.pop(caller, None)
            self._callers[caller] = None  # it comes last
            if len(self._callers) > _MOST_CALLERS:
                del self._callers[next(iter(self._callers))]

    def allows(self, frame: memoryview) -> bool:
        """Whether this IPv4 packet of the guest's may leave."""
        try:
            packet = _Packet(frame)
        except ValueError:
            passes = False
        else:
            passes = self._is_answer(packet) or self._is_ruled_in(packet)
        self.denied += not passes
        return passes

    def _is_answer(self, packet: _Packet) -> bool:
        if packet.protocol == _TCP and packet.flags & (_SYN | _ACK) == _SYN:
            return False  # a call of its own
        return (packet.protocol, bytes(packet.destination), packet.far, packet.near) in self._callers

    def _is_ruled_in(self, packet: _Packet) -> bool:
        address = int.from_bytes(packet.destination, "big")
        for protocol, network, mask, ports in self._rules:
            if protocol not in (0, packet.protocol) or address & mask != network:
                continue
            if protocol == _ICMP and packet.near != _ECHO:
                continue
            if ports is None or ports[0] <= packet.far <= ports[1]:
                return True
        return False


def refusal(frame: memoryview, gateway: bytes) -> bytes:
    """The frame that tells the guest so: a reset as if from where it wanted to go, else an error of
    `gateway`'s; nothing for what is not answered.
    """
    try:
        packet = _Packet(frame)
    except ValueError:
        return b""
    if packet.protocol == _TCP:
        body = b"" if packet.flags & _RST else _reset(frame, packet)
        source = bytes(packet.destination)
    else:
        if packet.protocol == _ICMP and packet.near != _ECHO:
            return b""  # an error is not answered by an error
        head = struct.pack("!BBHI", _UNREACHABLE, _PROHIBITED, 0, 0)
        body = head + bytes(frame[_ETHERNET : _ETHERNET + _IP + 8]).ljust(_IP + 8, b"\0")
        body = body[:2] + checksum(body) + body[4:]
        source, packet.protocol = gateway, _ICMP
    if not body:
        return b""
    total = _IP + len(body)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, 64, packet.protocol, 0) + source + packet.source
    ip = ip[:10] + checksum(ip) + ip[12:]
    return bytes(frame[6:12]) + bytes(frame[0:6]) + b"\x08\x00" + ip + body


def _reset(frame: memoryview, packet: _Packet) -> bytes:
    near, far, sequence, acknowledged, offset, flags = _SEGMENT.unpack_from(frame, _ETHERNET + _IP)
    total = _HEADER.unpack_from(frame, _ETHERNET)[1]
    if flags & _ACK:
        head = _SEGMENT.pack(far, near, acknowledged, 0, 20 << 2, _RST)
    else:
        length = max(0, total - _IP - (offset >> 4) * 4) + bool(flags & _SYN) + bool(flags & _FIN)
        after = (sequence + length) & 0xFFFFFFFF
        head = _SEGMENT.pack(far, near, 0, after, 20 << 2, _RST | _ACK)
    tcp = head + bytes(6)
    pseudo: bytes = packet.destination + packet.source + struct.pack("!HH", _TCP, len(tcp))
    return tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
