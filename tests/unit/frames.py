"""Ethernet frames as a hostile guest would make them, by hand."""

from __future__ import annotations

import socket
import struct

UDP, TCP, ICMP, ICMPV6 = 17, 6, 1, 58
IP, ARP, IP6 = 0x0800, 0x0806, 0x86DD


def ether(destination, source, kind, payload):
    """A frame; `kind` below 1536 is a length."""
    return _mac(destination) + _mac(source) + struct.pack("!H", kind) + payload


def ipv4(source, destination, protocol, payload, *, options=b"", flags=0, version=4, length=None, ihl=None):
    """`flags` is the field of flags and fragment offset."""
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH", version << 4 | ihl, 0, total, 7, flags, 64, protocol, 0)
    head += ip(source) + ip(destination) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source, destination, following, payload, *, hops=64, extensions=()):
    """`extensions` are (number, bytes after the next-header byte) pairs, in order."""
    body = payload
    for number, rest in reversed(extensions):
        body = bytes([following]) + rest + body
        following = number
    return struct.pack("!IHBB", 6 << 28, len(body), following, hops) + ip(source) + ip(destination) + body


def udp(source, destination, port, payload, *, from_port=40000):
    """A datagram with its sum; the addresses are those of the header around it."""
    head = struct.pack("!HHHH", from_port, port, 8 + len(payload), 0)
    total = checksum(_pseudo(source, destination, UDP, head + payload)) or 0xFFFF
    return head[:6] + struct.pack("!H", total) + payload


def tcp(source, destination, port, flags, payload=b"", *, from_port=40000):
    """A segment with `flags` (FIN 1, SYN 2, RST 4, ACK 16)."""
    head = struct.pack("!HHIIBBHHH", from_port, port, 1000, 2000, 5 << 4, flags, 65535, 0, 0)
    total = checksum(_pseudo(source, destination, TCP, head + payload))
    return head[:16] + struct.pack("!H", total) + head[18:] + payload


def icmp(kind, code, rest):
    """An ICMP message, `rest` from its fifth byte on."""
    head = struct.pack("!BBH", kind, code, 0) + rest
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]


def icmpv6(source, destination, kind, rest, code=0):
    """An ICMPv6 message, `rest` from its fifth byte on."""
    head = struct.pack("!BBH", kind, code, 0) + rest
    total = checksum(_pseudo(source, destination, ICMPV6, head))
    return head[:2] + struct.pack("!H", total) + head[4:]


def arp(operation, sender_mac, sender, target, *, hardware=1, protocol=IP, sizes=(6, 4)):
    """An ARP packet without a target's MAC."""
    head = struct.pack("!HHBBH", hardware, protocol, *sizes, operation)
    return head + _mac(sender_mac) + ip(sender) + bytes(6) + ip(target)


def checksum(data):
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source, destination, protocol, data):
    if ":" in source:
        return ip(source) + ip(destination) + struct.pack("!II", len(data), protocol) + data
    return ip(source) + ip(destination) + struct.pack("!BBH", 0, protocol, len(data)) + data


def ip(text):
    """An address, packed."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _mac(text):
    return bytes.fromhex(text.replace(":", ""))
