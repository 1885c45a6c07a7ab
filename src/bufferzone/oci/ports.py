"""Ports of the host that lead to the guest, as the setting `publish` names them.

Each is [ADDRESS:]HOST:GUEST[/tcp|udp]. Without an address the port is open on all of the host's, as with
Podman.
"""

from __future__ import annotations

import _socket

_PROTOCOLS = ("tcp", "udp")


class Port:
    """One published port; `address` is a literal IPv4 address, or empty for all."""

    __slots__ = ("address", "guest", "host", "protocol")

    def __init__(self, address: str, host: int, guest: int, protocol: str) -> None:
        self.address, self.host, self.guest, self.protocol = address, host, guest, protocol


def parse(text: str) -> Port:
    """One word of the list; raises `ValueError` saying what is wrong."""
    numbers, _, protocol = text.partition("/")
    if (protocol or "tcp") not in _PROTOCOLS:
        raise ValueError(f"{text!r}: neither /tcp nor /udp")
    *rest, host, guest = numbers.split(":") if numbers.count(":") else ("", "")
    for number in (host, guest):
        if not (number.isascii() and number.isdecimal() and 0 < int(number) < 65536):
            raise ValueError(f"{text!r}: expected [ADDRESS:]HOST:GUEST[/tcp|udp] with ports 1 to 65535")
    address = ":".join(rest)
    if rest:
        try:
            _socket.inet_pton(_socket.AF_INET, address)
        except OSError:
            raise ValueError(f"{text!r}: not an IPv4 address: {address}") from None
    return Port(address, int(host), int(guest), protocol or "tcp")
