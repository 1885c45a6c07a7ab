"""Frames that a hostile guest makes by hand, by name: each is a function of a tag by which it is known again.

Standard library only, since they are made inside a VM too. `PASSING` may pass where the policy is `RULES`;
the others must not, under any policy that does not allow all.
"""

from __future__ import annotations

import struct

try:
    from unit import frames
except ImportError:  # in a VM the two files lie side by side
    import frames

GUEST4, GUEST6, GUEST_LOCAL = "10.99.0.2", "fd99::2", "fe80::2"
GATEWAY4, GATEWAY6 = "10.99.0.1", "fd99::1"
MAC, GATEWAY_MAC = "02:00:00:00:99:02", "02:00:00:00:99:01"
RULES = ("tcp:192.0.2.7:443", "udp:192.0.2.7:53", "udp:[fd00::7]:53", "tcp:[fd00::7]:443")
OPEN4, OPEN6, SHUT4, SHUT6 = "192.0.2.7", "fd00::7", "198.51.100.9", "2001:db8::9"
OTHER4, OTHER6, OTHER_MAC = "10.99.0.77", "fd99::77", "02:00:00:00:99:77"
EVERYBODY, STP = "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:00"


ARP, IP, IP6, TCP, UDP = frames.ARP, frames.IP, frames.IP6, frames.TCP, frames.UDP


def to_gateway(kind, payload, **more):
    return frames.ether(more.get("to", GATEWAY_MAC), more.get("source", MAC), kind, payload)


def udp4(tag, destination=OPEN4, source=GUEST4, **more):
    return frames.ipv4(source, destination, UDP, frames.udp(source, destination, 53, tag), **more)


def udp6(tag, destination=OPEN6, source=GUEST6, **more):
    return frames.ipv6(source, destination, UDP, frames.udp(source, destination, 53, tag), **more)


def plain(tag):
    return to_gateway(IP, udp4(tag))


def tcp4(tag, flags, destination=SHUT4, port=443):
    return frames.ipv4(GUEST4, destination, TCP, frames.tcp(GUEST4, destination, port, flags, tag))


def management(tag, kind, *, source=GUEST6, to=GATEWAY6, target=GUEST6, hops=255):
    """A message of neighbour discovery, the tag as an option that nobody knows."""
    address = frames.ip(target) if target else b""
    rest = bytes(4) + address + bytes([200, 2]) + bytes(6) + tag
    return frames.ipv6(source, to, frames.ICMPV6, frames.icmpv6(source, to, kind, rest), hops=hops)


PASSING = {
    "IPv4 to where it may": plain,
    "IPv6 to where it may": lambda tag: to_gateway(IP6, udp6(tag)),
    "a question by ARP": lambda tag: to_gateway(
        ARP, frames.arp(1, MAC, GUEST4, GATEWAY4) + tag, to=EVERYBODY
    ),
    "an answer by ARP": lambda tag: to_gateway(ARP, frames.arp(2, MAC, GUEST4, GATEWAY4) + tag),
    "a probe by ARP": lambda tag: to_gateway(ARP, frames.arp(1, MAC, "0.0.0.0", GUEST4) + tag, to=EVERYBODY),
    "a neighbour solicitation": lambda tag: to_gateway(IP6, management(tag, 135, target=GATEWAY6)),
    "one from the link-local address": lambda tag: to_gateway(
        IP6, management(tag, 135, source=GUEST_LOCAL, to="ff02::1:ff00:1", target=GATEWAY6)
    ),
    "a question whether its address is taken": lambda tag: to_gateway(
        IP6, management(tag, 135, source="::", to="ff02::1:ff00:2")
    ),
    "a neighbour advertisement": lambda tag: to_gateway(IP6, management(tag, 136)),
    "a router solicitation": lambda tag: to_gateway(IP6, management(tag, 133, to="ff02::2", target="")),
}

ENCAPSULATED = {
    f"{name} around IPv{version}": (lambda tag, h=head, k=kind, p=packet: to_gateway(k, h + p(tag)))
    for version, kind_inside, packet in ((4, IP, udp4), (6, IP6, udp6))
    for name, kind, head in (
        ("a VLAN tag", 0x8100, struct.pack("!HH", 5, kind_inside)),
        ("a priority tag", 0x8100, struct.pack("!HH", 0xE000, kind_inside)),
        ("a service tag", 0x88A8, struct.pack("!HH", 5, kind_inside)),
        ("two tags", 0x88A8, struct.pack("!HHHH", 5, 0x8100, 6, kind_inside)),
        ("two equal tags", 0x8100, struct.pack("!HHHH", 5, 0x8100, 6, kind_inside)),
        ("PPPoE", 0x8864, struct.pack("!BBHHH", 0x11, 0, 7, 80, 0x21 if version == 4 else 0x57)),
        ("MPLS", 0x8847, struct.pack("!I", 16 << 12 | 1 << 8 | 64)),
        ("SNAP", 68, b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", kind_inside)),
        ("a length in place of a type", 60, b""),
        ("the type of ARP", ARP, b""),
        ("the other version's type", IP6 if version == 4 else IP, b""),
        ("loopback's type", 0x9000, b""),
        ("MACsec", 0x88E5, bytes(8)),
    )
}

FORGED = {
    "another MAC": lambda tag: to_gateway(IP, udp4(tag), source=OTHER_MAC),
    "the gateway's MAC": lambda tag: to_gateway(IP, udp4(tag), source=GATEWAY_MAC),
    "a group as its MAC": lambda tag: to_gateway(IP, udp4(tag), source=EVERYBODY),
    "a neighbour's address": lambda tag: to_gateway(IP, udp4(tag, source=OTHER4)),
    "no address": lambda tag: to_gateway(IP, udp4(tag, source="0.0.0.0"), to=EVERYBODY),
    "a neighbour's IPv6 address": lambda tag: to_gateway(IP6, udp6(tag, source=OTHER6)),
    "no IPv6 address": lambda tag: to_gateway(IP6, udp6(tag, source="::")),
    "the gateway's address by ARP": lambda tag: to_gateway(
        ARP, frames.arp(2, MAC, GATEWAY4, OTHER4) + tag, to=EVERYBODY
    ),
    "another MAC within ARP": lambda tag: to_gateway(ARP, frames.arp(2, OTHER_MAC, GUEST4, OTHER4) + tag),
    "the gateway by advertisement": lambda tag: to_gateway(
        IP6, management(tag, 136, to="ff02::1", target=GATEWAY6)
    ),
    "a neighbour's solicitation": lambda tag: to_gateway(
        IP6, management(tag, 135, source=OTHER6, target=GATEWAY6)
    ),
    "an advertisement from nobody": lambda tag: to_gateway(
        IP6, management(tag, 136, source="::", to="ff02::1")
    ),
    "a router": lambda tag: to_gateway(
        IP6, management(tag, 134, source=GUEST_LOCAL, to="ff02::1", target="")
    ),
    "a redirect": lambda tag: to_gateway(IP6, management(tag, 137, source=GUEST_LOCAL)),
    "reverse ARP": lambda tag: to_gateway(ARP, frames.arp(3, MAC, GUEST4, GATEWAY4) + tag),
    "ARP of another hardware": lambda tag: to_gateway(
        ARP, frames.arp(1, MAC, GUEST4, OTHER4, hardware=6) + tag
    ),
    "ARP of another protocol": lambda tag: to_gateway(
        ARP, frames.arp(1, MAC, GUEST4, OTHER4, protocol=5) + tag
    ),
    "ARP of other sizes": lambda tag: to_gateway(
        ARP, frames.arp(1, MAC, GUEST4, OTHER4, sizes=(6, 16)) + tag
    ),
    "spanning tree": lambda tag: to_gateway(38, b"\x42\x42\x03" + tag, to=STP),
}

FRAGMENT_HEADER = struct.pack("!BHI", 0, 1, 9)
MALFORMED = {
    "a first fragment": lambda tag: to_gateway(IP, udp4(tag, flags=0x2000)),
    "a later fragment": lambda tag: to_gateway(IP, udp4(tag, flags=0x0010)),
    "a last, tiny fragment": lambda tag: to_gateway(IP, frames.ipv4(GUEST4, OPEN4, UDP, tag, flags=0x0001)),
    "the flag that must be zero is no fragment, but denied": lambda tag: to_gateway(
        IP, udp4(tag, SHUT4, flags=0x8000)
    ),
    "a source route": lambda tag: to_gateway(
        IP, udp4(tag, options=bytes([131, 7, 4]) + frames.ip(SHUT4) + b"\0")
    ),
    "an option without effect": lambda tag: to_gateway(IP, udp4(tag, options=b"\1\1\1\0")),
    "a header too short": lambda tag: to_gateway(IP, udp4(tag, ihl=4)),
    "IPv4 that says it is 6": lambda tag: to_gateway(IP, udp4(tag, version=6)),
    "half a header": lambda tag: to_gateway(IP, udp4(tag)[:15] + tag),
    "hop-by-hop options": lambda tag: to_gateway(IP6, udp6(tag, extensions=[(0, b"\0\1\4" + bytes(4))])),
    "destination options": lambda tag: to_gateway(IP6, udp6(tag, extensions=[(60, b"\0\1\4" + bytes(4))])),
    "a routing header": lambda tag: to_gateway(
        IP6, udp6(tag, extensions=[(43, b"\2\0\1" + bytes(4) + frames.ip(SHUT6))])
    ),
    "an IPv6 fragment": lambda tag: to_gateway(IP6, udp6(tag, extensions=[(44, FRAGMENT_HEADER)])),
    "a whole one that says fragment": lambda tag: to_gateway(
        IP6, udp6(tag, extensions=[(44, struct.pack("!BHI", 0, 0, 9))])
    ),
    "an authentication header": lambda tag: to_gateway(IP6, udp6(tag, extensions=[(51, b"\4" + bytes(22))])),
    "options before an advertisement": lambda tag: to_gateway(
        IP6,
        frames.ipv6(
            GUEST6,
            "ff02::1",
            frames.ICMPV6,
            frames.icmpv6(GUEST6, "ff02::1", 136, bytes(4) + frames.ip(GATEWAY6) + tag),
            hops=255,
            extensions=[(60, b"\0\1\4" + bytes(4))],
        ),
    ),
}

DENIED = {
    "a datagram": lambda tag: to_gateway(IP, udp4(tag, SHUT4)),
    "an IPv6 datagram": lambda tag: to_gateway(IP6, udp6(tag, SHUT6)),
    "a datagram to a neighbour": lambda tag: to_gateway(IP, udp4(tag, GATEWAY4)),
    "a datagram to everybody": lambda tag: to_gateway(IP, udp4(tag, "255.255.255.255"), to=EVERYBODY),
    "a datagram to a group": lambda tag: to_gateway(IP, udp4(tag, "224.0.0.251"), to="01:00:5e:00:00:fb"),
    "a segment in the middle of a connection": lambda tag: to_gateway(IP, tcp4(tag, 16)),
    "data with a SYN": lambda tag: to_gateway(IP, tcp4(tag, 2)),
    "a reset": lambda tag: to_gateway(IP, tcp4(tag, 4)),
    "an answer to no request's call": lambda tag: to_gateway(IP, tcp4(tag, 18)),
    "all flags": lambda tag: to_gateway(IP, tcp4(tag, 63)),
    "no flags": lambda tag: to_gateway(IP, tcp4(tag, 0)),
    "the right host's other port": lambda tag: to_gateway(IP, tcp4(tag, 16, OPEN4, 80)),
    "an echo": lambda tag: to_gateway(IP, frames.ipv4(GUEST4, OPEN4, 1, frames.icmp(8, 0, bytes(4) + tag))),
    "an echo's answer": lambda tag: to_gateway(
        IP, frames.ipv4(GUEST4, SHUT4, 1, frames.icmp(0, 0, bytes(4) + tag))
    ),
    "an error about nothing": lambda tag: to_gateway(
        IP, frames.ipv4(GUEST4, SHUT4, 1, frames.icmp(3, 1, bytes(4) + udp4(tag, GUEST4, SHUT4)))
    ),
    "IPv4 in IPv4": lambda tag: to_gateway(IP, frames.ipv4(GUEST4, OPEN4, 4, udp4(tag, SHUT4))),
    "IPv6 in IPv4": lambda tag: to_gateway(IP, frames.ipv4(GUEST4, OPEN4, 41, udp6(tag, SHUT6))),
    "GRE": lambda tag: to_gateway(IP, frames.ipv4(GUEST4, OPEN4, 47, struct.pack("!HH", 0, IP) + udp4(tag))),
    "IPv4 in IPv6": lambda tag: to_gateway(IP6, frames.ipv6(GUEST6, OPEN6, 4, udp4(tag))),
    "IPv6 in IPv6": lambda tag: to_gateway(IP6, frames.ipv6(GUEST6, OPEN6, 41, udp6(tag))),
    "ESP": lambda tag: to_gateway(IP6, frames.ipv6(GUEST6, OPEN6, 50, bytes(8) + tag)),
}

#: neighbour discovery that would leave the link
AWAY = {
    "a solicitation to a network beyond": lambda tag: to_gateway(
        IP6, management(tag, 135, to=SHUT6, target=SHUT6)
    ),
    "an advertisement to a network beyond": lambda tag: to_gateway(IP6, management(tag, 136, to=SHUT6)),
    "a solicitation that crossed a router": lambda tag: to_gateway(
        IP6, management(tag, 135, target=GATEWAY6, hops=64)
    ),
    "a solicitation to a wider group": lambda tag: to_gateway(IP6, management(tag, 135, to="ff0e::1")),
}
