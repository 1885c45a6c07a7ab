"""An egress policy as nftables rules: what an egress bridge's network namespace is loaded with, as JSON.

Pure. Three families, since each sees what the others do not: `netdev` every frame as it arrives, before the
kernel has looked into it; `inet` connections, IPv4 and IPv6 in one; `bridge` whatever is about to leave. They
talk through the packet's mark, and what carries no mark of ours is dropped everywhere: where one of them does
not look (a tag, an unknown frame, br_netfilter switched off), the next one finds no mark. Source:
libnftables-json(5), nft(8).
"""

from __future__ import annotations

import _socket

from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from bufferzone.egress import Rule

    Expression = dict[str, Any]

TABLE = "bufferzone"
#: named counters: connections and packets that the policy refused, and frames that no policy would let pass
DENIED, FORGED = COUNTERS = "denied", "forged"
#: marks, one at a time: it came from the guest, it came from outside, it may leave
_FROM_GUEST, _FROM_OUTSIDE, _PASSED = 1, 2, 3
#: IPv6 headers that only hide what follows: hop-by-hop, routing, fragment, authentication, none, destination,
#: mobility, HIP, shim6, experiments
_HIDING = (0, 43, 44, 51, 59, 60, 135, 139, 140, 253, 254)
_SOLICITATIONS = (133, 135)  # of routers, of neighbours: RFC 4861
_ADVERTISEMENT = 136  # of a neighbour
_ICMPV6 = (1, 2, 3, 4, 128, 129)  # errors and echo, for the policy to judge; all the rest manages the link
_LINK_LOCAL = ("fe80::", 10)
_LINK_GROUPS = ("ff02::", 16)
_NO_ADDRESS = "::"


class Guest(Record):
    """What a guest may call itself on an interface: a MAC of six bytes, (packed address, prefix) pairs."""

    mac: bytes
    addresses: tuple[tuple[bytes, int], ...]


def build(rules: Iterable[Rule], guest: Guest, *, inside: str, outside: str) -> Expression:
    """The whole ruleset for a bridge with the ports `inside`, where the guest is, and `outside`.

    `rules` are what may be reached; replies to those who called first may always leave.
    """
    table = _Table()
    table.netdev("inside", inside)
    table.guest(guest)
    table.netdev("outside", outside)
    table.rule(
        "netdev", "outside", _match(_ether("type"), _one_of(["ip", "ip6"])), _mark(_FROM_OUTSIDE), _ACCEPT
    )
    table.rule("netdev", "outside", _match(_ether("type"), "arp"), _mark(_PASSED), _ACCEPT)
    _inet(table, rules)
    table.begin("bridge")
    table.chain("bridge", "leave", "postrouting")
    table.rule("bridge", "leave", _match(_MARK, _PASSED), _ACCEPT)
    return {"nftables": table.commands}


def renew(guest: Guest) -> Expression:
    """What makes a loaded ruleset that of another MAC or other addresses, in one step; counters stay."""
    table = _Table(new=False)
    table.guest(guest)
    return {
        "nftables": [
            {"flush": {"chain": {"family": "netdev", "table": TABLE, "name": "inside"}}},
            *table.commands,
        ]
    }


def _inet(table: _Table, rules: Iterable[Rule]) -> None:
    table.begin("inet")
    table.counter("inet", DENIED)
    table.chain("inet", "pass")
    table.rule("inet", "pass", _mark(_PASSED), _ACCEPT)
    table.chain("inet", "cross", "forward")
    known = _match({"ct": {"key": "state"}}, ["established", "related"], "in")
    table.rule("inet", "cross", _match(_MARK, _PASSED), _ACCEPT)
    table.rule("inet", "cross", _match(_MARK, _FROM_OUTSIDE), _PASS)
    table.rule("inet", "cross", _match(_MARK, _FROM_GUEST, "!="), {"drop": None})
    table.rule("inet", "cross", known, _PASS)
    for rule in rules:
        table.rule("inet", "cross", *_allow(rule), _PASS)
    table.rule("inet", "cross", {"counter": DENIED})
    table.rule("inet", "cross", _match(_L4, "tcp"), {"reject": {"type": "tcp reset"}})
    table.rule("inet", "cross", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
    # the namespace's own stack is nobody's: it says no for us, and hears nothing
    table.chain("inet", "hear", "input")
    table.chain("inet", "say", "output")
    for protocol in ("icmp", "icmpv6"):
        unreachable = _match(_payload(protocol, "type"), "destination-unreachable")
        table.rule("inet", "say", unreachable, _PASS)


def _guest_frames(guest: Guest) -> Iterable[tuple[Expression, ...]]:
    """What a guest may send at all, whatever the policy: from itself, whole, plain to read."""
    mac = guest.mac.hex(":")
    yield (_match(_ether("saddr"), mac, "!="), {"counter": FORGED}, {"drop": None})
    four = [_socket.inet_ntop(_socket.AF_INET, a) for a, _ in guest.addresses if len(a) == 4]
    six = [_socket.inet_ntop(_socket.AF_INET6, a) for a, _ in guest.addresses if len(a) == 16]
    if four:
        yield _arp(mac, four)
        yield (
            _match(_ether("type"), "ip"),
            _match(_payload("ip", "version"), 4),
            _match(_payload("ip", "hdrlength"), 5),
            _match({"&": [_payload("ip", "frag-off"), 0x3FFF]}, 0),
            _match(_payload("ip", "saddr"), _one_of(four)),
            _mark(_FROM_GUEST),
            _ACCEPT,
        )
    if six:
        networks = {_network(a, prefix) for a, prefix in guest.addresses if len(a) == 16}
        yield from _neighbour_discovery(six, sorted({_LINK_LOCAL, _LINK_GROUPS, *networks}))
        plain = (_match(_ether("type"), "ip6"), _match(_payload("ip6", "saddr"), _one_of(six)))
        judged = (_mark(_FROM_GUEST), _ACCEPT)
        yield (*plain, _match(_payload("ip6", "nexthdr"), _one_of([*_HIDING, 58]), "!="), *judged)
        yield (*plain, _ICMPV6_NEXT, _match(_payload("icmpv6", "type"), _one_of(_ICMPV6)), *judged)


def _arp(mac: str, addresses: Sequence[str]) -> tuple[Expression, ...]:
    """Ethernet and IPv4, a question or an answer, about nobody but the guest itself."""
    return (
        _match(_ether("type"), "arp"),
        _match(_payload("arp", "htype"), 1),
        _match(_payload("arp", "ptype"), 0x0800),
        _match(_payload("arp", "hlen"), 6),
        _match(_payload("arp", "plen"), 4),
        _match(_payload("arp", "operation"), _one_of(["request", "reply"])),
        _match(_payload("arp", "saddr ether"), mac),
        _match(_payload("arp", "saddr ip"), _one_of(["0.0.0.0", *addresses])),
        _mark(_PASSED),
        _ACCEPT,
    )


def _neighbour_discovery(
    addresses: Sequence[str], near: Sequence[tuple[str, int]]
) -> Iterable[tuple[Expression, ...]]:
    """Questions to the link, answers about the guest itself: never to networks beyond, that were a way out.

    The target of an advertisement is the 16 bytes at offset 8 of the message (RFC 4861 4.4).
    """
    link = (
        _match(_ether("type"), "ip6"),
        _ICMPV6_NEXT,
        _match(_payload("ip6", "hoplimit"), 255),
        _match(_payload("ip6", "daddr"), _one_of([_prefix(*network) for network in near])),
    )
    target = {"payload": {"base": "th", "offset": 64, "len": 128}}
    own = [int.from_bytes(_socket.inet_pton(_socket.AF_INET6, a), "big") for a in addresses]
    kind = _payload("icmpv6", "type")
    senders = _match(_payload("ip6", "saddr"), _one_of([_NO_ADDRESS, *addresses]))
    yield (*link, senders, _match(kind, _one_of(_SOLICITATIONS)), _mark(_PASSED), _ACCEPT)
    senders = _match(_payload("ip6", "saddr"), _one_of(addresses))
    answer = (_match(kind, _ADVERTISEMENT), _match(target, _one_of([f"0x{a:032x}" for a in own])))
    yield (*link, senders, *answer, _mark(_PASSED), _ACCEPT)


def _allow(rule: Rule) -> tuple[Expression, ...]:
    """The packets that one rule of the policy lets pass."""
    name = "ip" if rule.version == 4 else "ip6"
    words = [_match({"meta": {"key": "nfproto"}}, "ipv4" if rule.version == 4 else "ipv6")]
    if rule.bits:
        words.append(_match(_payload(name, "daddr"), _prefix(rule.address, rule.bits)))
    if rule.protocol == "icmp":
        words.append(_match(_payload("icmp" if rule.version == 4 else "icmpv6", "type"), "echo-request"))
    elif rule.ports:
        low, high = rule.ports
        ports = low if low == high else {"range": [low, high]}
        words.append(_match(_payload(rule.protocol, "dport"), ports))
    elif rule.protocol:
        words.append(_match(_L4, rule.protocol))
    return tuple(words)


class _Table:
    """The commands, in order."""

    def __init__(self, *, new: bool = True) -> None:
        self.commands: list[Expression] = []
        if new:
            self.begin("netdev")
            self.counter("netdev", FORGED)

    def guest(self, guest: Guest) -> None:
        """What arrives from the guest."""
        for words in _guest_frames(guest):
            self.rule("netdev", "inside", *words)
        self.rule("netdev", "inside", {"counter": FORGED}, {"drop": None})

    def begin(self, family: str) -> None:
        self._add("table", family=family, name=TABLE)

    def counter(self, family: str, name: str) -> None:
        self._add("counter", family=family, table=TABLE, name=name)

    def netdev(self, name: str, device: str) -> None:
        self.chain("netdev", name, "ingress", dev=device)

    def chain(self, family: str, name: str, hook: str = "", **fields: str) -> None:
        """A chain; one at a hook drops what no rule accepts."""
        base = {"type": "filter", "hook": hook, "prio": 0, "policy": "drop"} if hook else {}
        self._add("chain", family=family, table=TABLE, name=name, **base, **fields)

    def rule(self, family: str, chain: str, *words: Expression) -> None:
        self._add("rule", family=family, table=TABLE, chain=chain, expr=list(words))

    def _add(self, kind: str, **values: Any) -> None:
        self.commands.append({"add": {kind: values}})


def _payload(protocol: str, field: str) -> Expression:
    return {"payload": {"protocol": protocol, "field": field}}


def _ether(field: str) -> Expression:
    """Of the frame as it was on the wire: with a VLAN tag its type is the tag's, not what lies within."""
    return _payload("ether", field)


def _match(left: Expression, right: Any, operator: str = "==") -> Expression:
    return {"match": {"op": operator, "left": left, "right": right}}


def _one_of(values: Iterable[Any]) -> Any:
    values = list(values)
    return values[0] if len(values) == 1 else {"set": values}


def _prefix(address: str, bits: int) -> Expression:
    return {"prefix": {"addr": address, "len": bits}}


def _network(address: bytes, prefix: int) -> tuple[str, int]:
    rest = 128 - prefix
    network = int.from_bytes(address, "big") >> rest << rest
    return _socket.inet_ntop(_socket.AF_INET6, network.to_bytes(16, "big")), prefix


def _mark(value: int) -> Expression:
    return {"mangle": {"key": _MARK, "value": value}}


_MARK: Expression = {"meta": {"key": "mark"}}
_L4: Expression = {"meta": {"key": "l4proto"}}
_ICMPV6_NEXT = _match(_payload("ip6", "nexthdr"), 58)
_ACCEPT: Expression = {"accept": None}
_PASS: Expression = {"jump": {"target": "pass"}}
