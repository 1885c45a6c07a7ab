"""The bridge between a guest and a container's network that enforces an egress policy.

    guest -- tap [bridge, rules] outside == far end -- tc -- interface, in the container's namespace

Tap, bridge and rules are in a network namespace of their own, which belongs to the shim: neither the guest
nor who may enter the container's namespace gets at them, and with the shim all of it is gone, the far end
too. The far end is made there as well, and moved as a tap is (`tcfilter.move`). The namespace routes
nothing and listens to nothing; it has addresses only to say no from. Where the rules cannot be loaded
nothing comes up.
"""

from __future__ import annotations

import os
import threading
from functools import partial

from bufferzone.errors import HostError
from bufferzone.linux import links, rtnetlink
from bufferzone.linux.netlink import Netlink
from bufferzone.network import namespace, nft, ruleset, tcfilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.egress import Rule
    from bufferzone.network.interfaces import Interface

_BRIDGE, _OUTSIDE = "bz", "bz1"
#: the far end while it is at home
FAR = "bz2"
_SCOPE_LINK, _PROTOCOL_STATIC = 253, 4
#: the bridge's own, so that ICMPv6 errors have a sender; IPv4's need none (RFC 7600)
_SENDER = rtnetlink.Address(
    local=bytes.fromhex("fe800000000000000000000000000001"), prefix=64, scope=_SCOPE_LINK
)
_SYSCTLS = (
    ("bridge/bridge-nf-call-iptables", "1"),
    ("bridge/bridge-nf-call-ip6tables", "1"),
    ("bridge/bridge-nf-call-arptables", "0"),
    ("ipv4/ip_forward", "0"),
    # each refusal is told, and to nobody but the guest itself
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/icmp/ratemask", "\n"),
)


class EgressBridges:
    """The egress bridges of one sandbox, one per interface. Only what `rules` say may be reached."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._made: dict[int, tuple[int, Interface]] = {}
        self._lock = threading.Lock()

    def follow(self, number: int, where: int, interface: Interface) -> None:
        """Make bridge `number` around the tap that is parked in the namespace `where`, for `interface`; where
        it is made already, follow the interface's MAC, addresses and MTU. Raises `HostError`.
        """
        with self._lock:
            if number not in self._made:
                namespace.inside(where, lambda: _build(tcfilter.PARKED, interface, self.rules))
                self._made[number] = os.dup(where), interface
                return
            where, old = self._made[number]
            if (interface.mac, interface.addresses) != (old.mac, old.addresses):
                namespace.inside(where, partial(_renew, interface))
            if interface.mtu != old.mtu:
                namespace.inside(where, partial(_resize, interface))
            self._made[number] = where, interface

    def counters(self) -> dict[str, int]:
        """Packets refused: `denied` by the policy, `forged` whatever the policy. Raises `HostError`."""
        total = dict.fromkeys((ruleset.DENIED, ruleset.FORGED), 0)
        with self._lock:
            for where, _ in self._made.values():
                for name, packets in namespace.inside(where, lambda: nft.counters(ruleset.TABLE)).items():
                    total[name] += packets
        return total

    def close(self) -> None:
        """Forget the namespaces; each goes with its tap."""
        with self._lock:
            while self._made:
                os.close(self._made.popitem()[1][0])


def _build(tap: str, interface: Interface, rules: tuple[Rule, ...]) -> None:
    nft.find_program()
    _set_sysctls()
    guest = _guest(interface)
    with Netlink() as netlink:
        try:
            links.add_bridge(netlink, _BRIDGE)
            links.add_pair(netlink, _OUTSIDE, FAR, interface.mtu)
            found = {link.name: link.index for link in rtnetlink.links(netlink)}
            nft.load(ruleset.build(rules, guest, inside=tap, outside=_OUTSIDE))
            _bring_up(netlink, found[_BRIDGE], (found[tap], found[_OUTSIDE]), interface)
        except BaseException as error:
            _take_back(netlink)
            if isinstance(error, OSError):
                raise HostError(
                    f"egress: interface {interface.name}: {error.strerror}",
                    hint="the kernel needs bridge, br_netfilter and veth",
                    code="egress",
                ) from error
            raise


def _guest(interface: Interface) -> ruleset.Guest:
    addresses = tuple((address.local, address.prefix) for address in interface.addresses)
    return ruleset.Guest(mac=interface.mac, addresses=addresses)


def _renew(interface: Interface) -> None:
    nft.load(ruleset.renew(_guest(interface)))
    with Netlink() as netlink:
        try:
            bridge = next(link.index for link in rtnetlink.links(netlink) if link.name == _BRIDGE)
            _lead_back(netlink, bridge, interface)
        except (OSError, StopIteration) as error:
            raise HostError(f"egress: interface {interface.name}: {error}", code="egress") from error


def _resize(interface: Interface) -> None:
    """The bridge takes the least MTU of its ports, and drops what is larger."""
    with Netlink() as netlink:
        try:
            for link in rtnetlink.links(netlink):
                if link.name in (tcfilter.PARKED, _OUTSIDE):
                    rtnetlink.set_link(netlink, link.index, rtnetlink.mtu(interface.mtu))
        except OSError as error:
            words = f"egress: interface {interface.name}: MTU {interface.mtu}: {error.strerror}"
            raise HostError(words, code="egress") from error


def _set_sysctls() -> None:
    for name, value in _SYSCTLS:
        path = f"/proc/sys/net/{name}"
        if name.startswith("ipv6/") and not os.path.exists(path):
            continue  # a kernel without it
        try:
            with open(path, "w") as file:
                file.write(value)
        except OSError as error:
            hint = "modprobe br_netfilter" if name.startswith("bridge/") else ""
            reason = f"egress: {path}: {error.strerror}"
            raise HostError(reason, hint=hint, code="egress") from error


def _bring_up(netlink: Netlink, bridge: int, ports: tuple[int, int], interface: Interface) -> None:
    for port in ports:
        rtnetlink.set_link(
            netlink, port, links.port_of(bridge), rtnetlink.mtu(interface.mtu), rtnetlink.no_own_address()
        )
    rtnetlink.set_link(netlink, bridge, rtnetlink.no_own_address())
    for index in (bridge, *ports):
        rtnetlink.set_link(netlink, index, up=True)
    _lead_back(netlink, bridge, interface)


def _lead_back(netlink: Netlink, bridge: int, interface: Interface) -> None:
    """Routes by which errors reach the guest, whatever it calls itself."""
    if any(len(address.local) == 16 for address in interface.addresses):
        rtnetlink.add_address(netlink, bridge, _SENDER)
    for address in interface.addresses:
        local = address.local
        route = rtnetlink.Route(
            destination=local,
            family=rtnetlink.family_of(local),
            index=bridge,
            prefix=len(local) * 8,
            protocol=_PROTOCOL_STATIC,
            scope=_SCOPE_LINK if len(local) == 4 else 0,
            type=rtnetlink.UNICAST,
        )
        rtnetlink.add_route(netlink, bridge, route)
        rtnetlink.add_neighbour(
            netlink, bridge, rtnetlink.Neighbour(address=local, index=bridge, mac=interface.mac)
        )


def _take_back(netlink: Netlink) -> None:
    for link in rtnetlink.links(netlink):
        if link.name in (_BRIDGE, _OUTSIDE):
            links.remove(netlink, link.index)
