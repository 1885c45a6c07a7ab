"""The last step of a TCP handshake, which passt leaves out.

The passt of Debian 12 (2023-03-09) answers the guest's SYN,ACK with nothing until the peer has sent data: to
the guest the connection is not there, so a server that speaks first (ssh, SMTP, MySQL) is silent until its
client gives up. Here is the ACK that is missing, made from the SYN,ACK. Where passt sends one too, it is the
same again, which RFC 9293 section 3.10.7.4 lets a receiver ignore.
"""

from __future__ import annotations

import struct

_IPV4, _TCP = b"\x08\x00", 6
_ETHERNET, _LEAST_IP, _TCP_HEADER = 14, 20, 20
_SYN_ACK, _FLAGS = 0x12, 0x17  # SYN and ACK; with RST and FIN
_ACK = 0x10
#: passt's own: 64 KiB where the window is scaled as it asks, and a small one that soon grows where it is not
_WINDOW = 256
_PORTS = struct.Struct("!HHIIBB")  # source, destination, sequence, acknowledgment, header length, flags


def ack_of(frame: memoryview) -> bytes:
    """The ACK that answers an Ethernet frame with IPv4 when that is a SYN,ACK, else nothing."""
    if len(frame) < _ETHERNET + _LEAST_IP or frame[12:14] != _IPV4 or frame[_ETHERNET + 9] != _TCP:
        return b""
    start = _ETHERNET + (frame[_ETHERNET] & 0x0F) * 4
    if start < _ETHERNET + _LEAST_IP or len(frame) < start + _TCP_HEADER:
        return b""
    near, far, sequence, acknowledged, _, flags = _PORTS.unpack_from(frame, start)
    if flags & _FLAGS != _SYN_ACK:
        return b""
    source, destination = bytes(frame[26:30]), bytes(frame[30:34])
    total = _LEAST_IP + _TCP_HEADER
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 0, 0x4000, 64, _TCP, 0, destination, source)
    ip = ip[:10] + checksum(ip) + ip[12:]
    after = (sequence + 1) & 0xFFFFFFFF
    tcp = _PORTS.pack(far, near, acknowledged, after, _TCP_HEADER << 2, _ACK) + struct.pack(
        "!HHH", _WINDOW, 0, 0
    )
    pseudo = destination + source + struct.pack("!HH", _TCP, _TCP_HEADER)
    tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
    return bytes(frame[6:12]) + bytes(frame[0:6]) + bytes(frame[12:14]) + ip + tcp


def checksum(data: bytes) -> bytes:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
