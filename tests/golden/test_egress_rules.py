"""The rules that a policy becomes, word by word. A change here is a change of the wall: say why."""

from __future__ import annotations

import socket

from bufferzone import egress
from bufferzone.network import ruleset

GUEST = ruleset.Guest(
    mac=bytes.fromhex("020000009902"),
    addresses=(
        (socket.inet_pton(socket.AF_INET, "10.99.0.2"), 24),
        (socket.inet_pton(socket.AF_INET6, "fd99::2"), 64),
        (socket.inet_pton(socket.AF_INET6, "fe80::2"), 64),
    ),
)
POLICY = (
    "10.0.0.0/8",
    "tcp:192.0.2.7:443",
    "udp:[fd00::/8]:53",
    "tcp:198.51.100.0/24:8000-8100",
    "tcp:[::/0]",
    "icmp:[2001:db8::/32]",
    "0.0.0.0/0",
    "icmp:10.0.0.1",
)

#: one line per command, as `line` writes it
EXPECTED = """
table netdev.bufferzone
counter netdev.forged
chain netdev.inside at ingress bz0, else drop
netdev.inside: ether saddr != 02:00:00:00:99:02, count forged, drop
netdev.inside: ether type == arp, arp htype == 1, arp ptype == 2048, arp hlen == 6, arp plen == 4, \
arp operation == {request reply}, arp saddr ether == 02:00:00:00:99:02, arp saddr ip == {0.0.0.0 \
10.99.0.2}, mark := 3, accept
netdev.inside: ether type == ip, ip version == 4, ip hdrlength == 5, ip frag-off & 0x3fff == 0, ip \
saddr == 10.99.0.2, mark := 1, accept
netdev.inside: ether type == ip6, ip6 nexthdr == 58, ip6 hoplimit == 255, ip6 daddr == {fd99::/64 \
fe80::/10 fe80::/64 ff02::/16}, ip6 saddr == {:: fd99::2 fe80::2}, icmpv6 type == {133 135}, mark :=\
 3, accept
netdev.inside: ether type == ip6, ip6 nexthdr == 58, ip6 hoplimit == 255, ip6 daddr == {fd99::/64 \
fe80::/10 fe80::/64 ff02::/16}, ip6 saddr == {fd99::2 fe80::2}, icmpv6 type == 136, th[64:192] == \
{0xfd990000000000000000000000000002 0xfe800000000000000000000000000002}, mark := 3, accept
netdev.inside: ether type == ip6, ip6 saddr == {fd99::2 fe80::2}, ip6 nexthdr != {0 43 44 51 59 60 \
135 139 140 253 254 58}, mark := 1, accept
netdev.inside: ether type == ip6, ip6 saddr == {fd99::2 fe80::2}, ip6 nexthdr == 58, icmpv6 type == \
{1 2 3 4 128 129}, mark := 1, accept
netdev.inside: count forged, drop
chain netdev.outside at ingress bz1, else drop
netdev.outside: ether type == {ip ip6}, mark := 2, accept
netdev.outside: ether type == arp, mark := 3, accept
table inet.bufferzone
counter inet.denied
chain inet.pass
inet.pass: mark := 3, accept
chain inet.cross at forward *, else drop
inet.cross: mark == 3, accept
inet.cross: mark == 2, goto pass
inet.cross: mark != 1, drop
inet.cross: state in ['established', 'related'], goto pass
inet.cross: nfproto == ipv4, ip daddr == 10.0.0.0/8, goto pass
inet.cross: nfproto == ipv4, ip daddr == 192.0.2.7/32, tcp dport == 443, goto pass
inet.cross: nfproto == ipv6, ip6 daddr == fd00::/8, udp dport == 53, goto pass
inet.cross: nfproto == ipv4, ip daddr == 198.51.100.0/24, tcp dport == 8000-8100, goto pass
inet.cross: nfproto == ipv6, l4proto == tcp, goto pass
inet.cross: nfproto == ipv6, ip6 daddr == 2001:db8::/32, icmpv6 type == echo-request, goto pass
inet.cross: nfproto == ipv4, goto pass
inet.cross: nfproto == ipv4, ip daddr == 10.0.0.1/32, icmp type == echo-request, goto pass
inet.cross: count denied
inet.cross: l4proto == tcp, reject tcp reset
inet.cross: reject icmpx admin-prohibited
chain inet.hear at input *, else drop
chain inet.say at output *, else drop
inet.say: icmp type == destination-unreachable, goto pass
inet.say: icmpv6 type == destination-unreachable, goto pass
table bridge.bufferzone
chain bridge.leave at postrouting *, else drop
bridge.leave: mark == 3, accept
"""


def line(command):
    """A command in few words."""
    ((kind, value),) = command["add"].items()
    name = ".".join(value[key] for key in ("family", "chain", "name") if key in value)
    if kind == "rule":
        return f"{name}: " + ", ".join(shown(one) for one in value["expr"])
    if "hook" in value:
        return f"chain {name} at {value['hook']} {value.get('dev', '*')}, else {value['policy']}"
    return f"{kind} {name}"


def shown(node):
    """A statement or expression in few words."""
    if not isinstance(node, dict):
        return str(node)
    ((kind, value),) = node.items()
    match kind, value:
        case "match", {"op": op, "left": left, "right": right}:
            return f"{shown(left)} {op} {shown(right)}"
        case "payload", {"protocol": protocol, "field": field}:
            return f"{protocol} {field}"
        case "payload", {"base": base, "offset": offset, "len": length}:
            return f"{base}[{offset}:{offset + length}]"
        case "mangle", {"key": key, "value": new}:
            return f"{shown(key)} := {new}"
        case (("meta" | "ct"), {"key": key}):
            return key
        case "prefix", {"addr": address, "len": bits}:
            return f"{address}/{bits}"
        case "range", [low, high]:
            return f"{low}-{high}"
        case "set", values:
            return "{" + " ".join(shown(one) for one in values) + "}"
        case "&", [left, mask]:
            return f"{shown(left)} & {mask:#x}"
        case "jump", {"target": target}:
            return f"goto {target}"
        case "reject", {"type": how}:
            return f"reject {how} {value.get('expr', '')}".rstrip()
        case _, None:
            return kind
        case "counter", name:
            return f"count {name}"
    raise AssertionError(node)


def built(*rules):
    """The lines of a policy."""
    made = ruleset.build(egress.policy(rules), GUEST, inside="bz0", outside="bz1")
    assert list(made) == ["nftables"]
    assert all(list(command) == ["add"] for command in made["nftables"])
    assert {v.get("table", "bufferzone") for c in made["nftables"] for v in c["add"].values()} == {
        "bufferzone"
    }
    return [line(command) for command in made["nftables"]]


def test_a_policy_becomes_exactly_these_rules():
    assert built(*POLICY) == EXPECTED.strip().splitlines()


def test_where_nothing_is_allowed_the_rules_are_the_same_but_for_the_allowed():
    allowed = [row for row in EXPECTED.strip().splitlines() if row.startswith("inet.cross: nfproto")]
    assert len(allowed) == len(POLICY)
    assert built("none") == [row for row in EXPECTED.strip().splitlines() if row not in allowed]


def test_a_guest_without_addresses_of_a_version_sends_nothing_of_it():
    def types(*addresses):
        guest = ruleset.Guest(mac=GUEST.mac, addresses=addresses)
        made = ruleset.build((), guest, inside="bz0", outside="bz1")["nftables"]
        rows = [line(command) for command in made]
        return {
            row.split("ether type == ")[1].split(",")[0] for row in rows if "netdev.inside: ether type" in row
        }

    four, six, _ = GUEST.addresses
    assert types(four) == {"arp", "ip"}
    assert types(six) == {"ip6"}
    assert types() == set()
