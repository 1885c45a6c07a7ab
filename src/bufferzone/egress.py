"""What a container may reach: the grammar of egress rules, and which rule lies within which.

    rule        = [protocol ":"] destination [":" ports]      or the word "none", alone: nothing at all
    protocol    = "tcp" | "udp" | "icmp"                      none given: every protocol
    destination = IPv4 ["/" bits] | "[" IPv6 ["/" bits] "]"   an address is a network of itself
    ports       = port | port "-" port                        only after tcp or udp; none given: every port

Pure: texts in, values out; `network` enforces them. Refuses: names of hosts (what they mean changes), host
bits in a network (which one was meant?), an IPv4 address in IPv6's clothes, leading zeros.
"""

from __future__ import annotations

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NONE = "none"
PROTOCOLS = ("tcp", "udp", "icmp")
#: an annotation may name rules too, and each is looked at for each packet of a new connection
MOST_RULES = 256
_MAPPED = 0xFFFF  # ::ffff:0:0/96, RFC 4291 2.5.5.2


class Rule:
    """One destination that is allowed: `protocol` (empty: every), `network` and `bits` of IP `version`.

    `network` is the address as a number; `ports` is (first, last), both included, or None for all of them.
    """

    __slots__ = ("bits", "network", "ports", "protocol", "version")

    def __init__(
        self, protocol: str, version: int, network: int, bits: int, ports: tuple[int, int] | None = None
    ) -> None:
        self.protocol, self.version, self.network, self.bits = protocol, version, network, bits
        self.ports = ports

    def contains(self, other: Rule) -> bool:
        """Whether all that `other` allows is allowed by this one alone."""
        shift = _width(self.version) - self.bits
        return (
            self.version == other.version
            and self.bits <= other.bits
            and self.network >> shift == other.network >> shift
            and self.protocol in ("", other.protocol)
            and (
                self.ports is None
                or (
                    other.ports is not None
                    and self.ports[0] <= other.ports[0] <= other.ports[1] <= self.ports[1]
                )
            )
        )

    @property
    def address(self) -> str:
        """The network's address as text, without its bits."""
        family = _socket.AF_INET if self.version == 4 else _socket.AF_INET6
        return _socket.inet_ntop(family, self.network.to_bytes(_width(self.version) // 8, "big"))

    def __str__(self) -> str:
        """The rule in the one way that it is shown; parses to the same rule."""
        text = self.address if self.bits == _width(self.version) else f"{self.address}/{self.bits}"
        text = f"[{text}]" if self.version == 6 else text
        if self.ports is not None:
            low, high = self.ports
            text += f":{low}" if low == high else f":{low}-{high}"
        return f"{self.protocol}:{text}" if self.protocol else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def parse(text: str) -> Rule:
    """One rule; raises ValueError with the reason, which does not repeat `text`."""
    protocol, separator, rest = text.partition(":")
    if separator and protocol in PROTOCOLS:
        return _parse_rest(protocol, rest)
    if separator and protocol.isalpha() and not _is_bare_ipv6(text):
        raise ValueError(f"the protocol must be one of {', '.join(PROTOCOLS)}")
    return _parse_rest("", text)


def _is_bare_ipv6(text: str) -> bool:
    try:
        _socket.inet_pton(_socket.AF_INET6, text.partition("/")[0])
    except (OSError, ValueError):
        return False
    return True


def _parse_rest(protocol: str, text: str) -> Rule:
    if text.startswith("["):
        destination, closed, rest = text[1:].partition("]")
        if not closed:
            raise ValueError("the bracket is not closed")
        if rest and not rest.startswith(":"):
            raise ValueError("expected : and a port after the bracket, with the network's bits inside it")
        separator, ports, version = rest[:1], rest[1:], 6
    else:
        destination, separator, ports = text.partition(":")
        version = 4
        if ":" in ports:
            raise ValueError("an IPv6 address must be in brackets, as in [fd00::/8]")
    network, bits = _parse_network(destination, version)
    if not separator:
        return Rule(protocol, version, network, bits)
    if protocol not in ("tcp", "udp"):
        raise ValueError("a port is allowed only after tcp: or udp:")
    return Rule(protocol, version, network, bits, _parse_ports(ports))


def _parse_network(text: str, version: int) -> tuple[int, int]:
    address, separator, bits_text = text.partition("/")
    width = _width(version)
    try:
        packed = _socket.inet_pton(_socket.AF_INET if version == 4 else _socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: a character that is not ASCII, or NUL
        raise ValueError(f"expected an IPv{version} address or network") from None
    bits = _number(bits_text, 0, width, "the network's bits") if separator else width
    network = int.from_bytes(packed, "big")
    if version == 6 and network >> 32 == _MAPPED:
        raise ValueError("an IPv4-mapped address must be written as IPv4")
    rest = width - bits
    if network >> rest << rest != network:
        meant = Rule("", version, network >> rest << rest, bits)
        raise ValueError(f"has bits set beyond its network: use {meant} or a longer prefix")
    return network, bits


def _parse_ports(text: str) -> tuple[int, int]:
    first, separator, last = text.partition("-")
    low = _number(first, 1, 65535, "a port")
    high = _number(last, 1, 65535, "a port") if separator else low
    if high < low:
        raise ValueError("the last port is below the first port")
    return low, high


def _number(text: str, least: int, most: int, what: str) -> int:
    plain = text.isascii() and text.isdigit() and len(text) <= 5 and (text == "0" or text[0] != "0")
    if not plain or not least <= int(text) <= most:
        raise ValueError(f"{what} must be a number from {least} to {most}")
    return int(text)


def _width(version: int) -> int:
    return 32 if version == 4 else 128


def parse_all(texts: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of a policy, empty for `none`; raises ValueError naming the rule that does not parse."""
    texts = list(texts)
    if texts == [NONE]:
        return ()
    if len(texts) > MOST_RULES:
        raise ValueError(f"{len(texts)} rules, the maximum is {MOST_RULES}")
    rules = []
    for text in texts:
        try:
            if text == NONE:
                raise ValueError("cannot be combined with other rules")
            rules.append(parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
    return tuple(rules)


def fault(texts: Iterable[str]) -> str:
    """Why a list of rules is none; empty when it is one."""
    try:
        parse_all(texts)
    except ValueError as error:
        return str(error)
    return ""


def policy(texts: Iterable[str]) -> tuple[Rule, ...] | None:
    """The setting's value as rules: None where the list is empty, so that everything may be reached."""
    texts = list(texts)
    return parse_all(texts) if texts else None


def beyond(wanted: Iterable[str], limits: Iterable[str]) -> str:
    """The first rule of `wanted` that lies in no single rule of `limits`; empty if there is none.

    Rules that only several rules of `limits` cover together count as beyond: a reader of both lists sees why.
    """
    allowed = parse_all(limits)
    for rule in parse_all(wanted):
        if not any(limit.contains(rule) for limit in allowed):
            return str(rule)
    return ""
