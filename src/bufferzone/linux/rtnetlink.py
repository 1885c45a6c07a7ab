"""Links, addresses, routes and neighbours over rtnetlink, as host and guest both need them.

Source: rtnetlink(7), linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h. IP addresses are packed bytes, 4
or 16; MAC addresses are six. Nothing is checked for sense: the kernel does that.
"""

from __future__ import annotations

import _socket
import errno
import struct
import time

from bufferzone.linux.ignoring import ignoring
from bufferzone.linux.netlink import (
    APPEND,
    CREATE,
    REPLACE,
    Netlink,
    attribute,
    attributes,
    nested,
    number,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR, _NEWROUTE, _DELROUTE, _GETROUTE = 20, 21, 22, 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
ETHERNET, LOOPBACK = 1, 772  # ARPHRD_*
UP = 1  # IFF_UP
_RUNNING = 0x40
LINK_CHANGES = 1  # RTMGRP_LINK
MAIN_TABLE = 254
KERNEL = 2  # RTPROT_KERNEL
UNICAST = 1
ONLINK = 4
PERMANENT = 0x80  # NUD_PERMANENT, IFA_F_PERMANENT
TEMPORARY, DAD_FAILED = 0x01, 0x08
_NODAD, _NOPREFIXROUTE = 0x02, 0x200
_CLONED = 0x200
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxHiHBB")


class Record:
    """A value with the fields of `__slots__`; what is not given is 0, b"" or ""."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, **values: object) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, values.pop(name) if name in values else self._blank(name))
        if values:
            raise TypeError(f"{type(self).__name__} has no {sorted(values)[0]!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.fields() == self.fields()

    def __hash__(self) -> int:
        return hash(tuple(self.fields().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.fields().items() if v)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def fields(self) -> dict[str, object]:
        """All of it by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def _blank(cls, name: str) -> object:
        kind = cls.__annotations__[name]
        return {"int": 0, "bytes": b"", "str": ""}[kind]


class Link(Record):
    """An interface: `type` is ARPHRD_*, `kind` the driver's name for virtual ones, `master` an index."""

    __slots__ = ("alias", "flags", "index", "kind", "mac", "master", "mtu", "name", "type")
    alias: str
    flags: int
    index: int
    kind: str
    mac: bytes
    master: int
    mtu: int
    name: str
    type: int


class Address(Record):
    """An address of the interface `index`; `peer` is the other end of a point-to-point link."""

    __slots__ = ("broadcast", "flags", "index", "local", "peer", "prefix", "scope")
    broadcast: bytes
    flags: int
    index: int
    local: bytes
    peer: bytes
    prefix: int
    scope: int


class Route(Record):
    """A route of the main table out of `index`: to `destination`/`prefix` (empty and 0: the default).

    `family` is AF_INET or AF_INET6; a `gateway` of the other family is as good. `onlink`: the gateway
    is taken to be on the link. `several`: it has more than one next hop, which are not read.
    """

    __slots__ = ("destination", "family", "gateway", "index", "metric", "mtu", "onlink", "prefix", "protocol",
                 "scope", "several", "source", "type")  # fmt: skip
    destination: bytes
    family: int
    gateway: bytes
    index: int
    metric: int
    mtu: int
    onlink: int
    prefix: int
    protocol: int
    scope: int
    several: int
    source: bytes
    type: int


class Neighbour(Record):
    """A permanent entry: the `mac` of `address`."""

    __slots__ = ("address", "index", "mac")
    address: bytes
    index: int
    mac: bytes


def family_of(address: bytes) -> int:
    """AF_INET or AF_INET6 by length."""
    return int(_socket.AF_INET if len(address) == 4 else _socket.AF_INET6)


def links(netlink: Netlink) -> list[Link]:
    """All interfaces of the namespace."""
    found = []
    for body in netlink.dump(GETLINK, _LINK.pack(0, 0, 0, 0, 0)):
        _, type, index, flags, _ = _LINK.unpack_from(body)
        rows = attributes(body[_LINK.size :])
        found.append(
            Link(
                alias=_string(rows.get(20)),
                flags=flags,
                index=index,
                kind=_string(attributes(rows.get(18, b"")).get(1)),
                mac=rows.get(1, b""),
                master=_uint(rows.get(10)),
                mtu=_uint(rows.get(4)),
                name=_string(rows.get(3)),
                type=type,
            )
        )
    return found


def addresses(netlink: Netlink) -> list[Address]:
    """All addresses of the namespace, IPv4 and IPv6."""
    found = []
    for body in netlink.dump(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0)):
        _, prefix, flags, scope, index = _ADDRESS.unpack_from(body)
        rows = attributes(body[_ADDRESS.size :])
        local, peer = rows.get(2, rows.get(1, b"")), rows.get(1, b"")
        found.append(
            Address(
                broadcast=rows.get(4, b""),
                flags=_uint(rows.get(8)) or flags,
                index=index,
                local=local,
                peer=b"" if peer == local else peer,
                prefix=prefix,
                scope=scope,
            )
        )
    return found


def routes(netlink: Netlink) -> list[Route]:
    """The main table's routes, IPv4 and IPv6."""
    found = []
    for body in netlink.dump(_GETROUTE, _ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, prefix, _, _, table, protocol, scope, type, flags = _ROUTE.unpack_from(body)
        rows = attributes(body[_ROUTE.size :])
        if (_uint(rows.get(15)) or table) != MAIN_TABLE or flags & _CLONED:
            continue
        if family not in (_socket.AF_INET, _socket.AF_INET6):
            continue
        found.append(
            Route(
                destination=rows.get(1, b""),
                family=family,
                gateway=rows.get(5, rows.get(18, b"")[2:]),
                index=_uint(rows.get(4)),
                metric=_uint(rows.get(6)),
                mtu=_uint(attributes(rows.get(8, b"")).get(2)),
                onlink=int(bool(flags & ONLINK)),
                prefix=prefix,
                protocol=protocol,
                scope=scope,
                several=int(9 in rows),
                source=rows.get(7, b""),
                type=type,
            )
        )
    return found


def neighbours(netlink: Netlink) -> list[Neighbour]:
    """The permanent entries of the neighbour tables."""
    found = []
    for body in netlink.dump(_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0, 0)):
        _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
        rows = attributes(body[_NEIGHBOUR.size :])
        if state & PERMANENT and len(rows.get(2, b"")) == 6:
            found.append(Neighbour(address=rows.get(1, b""), index=index, mac=rows[2]))
    return found


def set_link(netlink: Netlink, index: int, *attributes: bytes, up: bool | None = None) -> None:
    """Change an interface: the attributes `name`, `mtu`, ... below, and whether it is up."""
    flags, change = (0, 0) if up is None else (UP if up else 0, UP)
    netlink.request(SETLINK, _LINK.pack(0, 0, index, flags, change) + b"".join(attributes))


def name(value: str) -> bytes:
    """For `set_link`: a name of at most 15 bytes."""
    return text(3, value)


def alias(value: str) -> bytes:
    """For `set_link`: a text of at most 255 bytes that `Link.alias` tells."""
    return text(20, value)


def mac(value: bytes) -> bytes:
    """For `set_link`: the Ethernet address."""
    return attribute(1, value)


def mtu(value: int) -> bytes:
    """For `set_link`: the largest packet in bytes."""
    return number(4, value)


def namespace(fd: int) -> bytes:
    """For `set_link`: move the interface to another network namespace."""
    return number(28, fd)


def no_own_address() -> bytes:
    """For `set_link`: the kernel makes no IPv6 link-local address (IN6_ADDR_GEN_MODE_NONE)."""
    return nested(26, nested(_socket.AF_INET6, attribute(8, b"\1")))


def add_address(netlink: Netlink, index: int, address: Address) -> None:
    """Add an address: no route for its prefix is made, and nobody is asked whether it is taken."""
    netlink.request(_NEWADDR, _address(index, address), CREATE | REPLACE)


def remove_address(netlink: Netlink, index: int, address: Address) -> None:
    """Remove an address; one that is not there is fine. The kernel may take others of its subnet with it."""
    with _gone_is_fine():
        netlink.request(_DELADDR, _address(index, address))


def _address(index: int, address: Address) -> bytes:
    flags = _NODAD | _NOPREFIXROUTE
    body = _ADDRESS.pack(
        family_of(address.local), address.prefix, flags & 0xFF, address.scope, index
    ) + attribute(2, address.local)
    body += attribute(1, address.peer or address.local) + number(8, flags)
    if address.broadcast:
        body += attribute(4, address.broadcast)
    return body


def add_route(netlink: Netlink, index: int, route: Route) -> None:
    """Add a route to the main table; the very same one, already there, is fine.

    Replacing would take the route of another interface to the same destination: each has its fe80::/64.
    """
    try:
        netlink.request(_NEWROUTE, _route(index, route), CREATE | APPEND)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def remove_route(netlink: Netlink, index: int, route: Route) -> None:
    """Remove a route of the main table; one that is not there is fine."""
    with _gone_is_fine():
        netlink.request(_DELROUTE, _route(index, route))


def _route(index: int, route: Route) -> bytes:
    flags = ONLINK if route.onlink else 0
    head = (route.family, route.prefix, 0, 0, MAIN_TABLE, route.protocol, route.scope, route.type, flags)
    body = _ROUTE.pack(*head) + number(4, index)
    if route.destination:
        body += attribute(1, route.destination)
    if route.gateway and family_of(route.gateway) == route.family:
        body += attribute(5, route.gateway)
    elif route.gateway:
        body += attribute(18, struct.pack("=H", family_of(route.gateway)) + route.gateway)
    if route.source:
        body += attribute(7, route.source)
    if route.metric:
        body += number(6, route.metric)
    if route.mtu:
        body += nested(8, number(2, route.mtu))
    return body


def add_neighbour(netlink: Netlink, index: int, neighbour: Neighbour) -> None:
    """Add a permanent entry."""
    body = _neighbour(index, neighbour) + attribute(2, neighbour.mac)
    netlink.request(_NEWNEIGH, body, CREATE | REPLACE)


def remove_neighbour(netlink: Netlink, index: int, neighbour: Neighbour) -> None:
    """Remove an entry; one that is not there is fine."""
    with _gone_is_fine():
        netlink.request(_DELNEIGH, _neighbour(index, neighbour))


def _neighbour(index: int, neighbour: Neighbour) -> bytes:
    head = _NEIGHBOUR.pack(family_of(neighbour.address), 0, index, PERMANENT, 0, 0)
    return head + attribute(1, neighbour.address)


def _gone_is_fine() -> ignoring:
    return ignoring(errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)


def await_running(netlink: Netlink, indexes: list[int], timeout_s: float) -> bool:
    """Wait until packets can leave by these interfaces; False when `timeout_s` passed first."""
    with Netlink(groups=LINK_CHANGES) as changes:
        end = time.monotonic() + timeout_s
        while True:
            running = {link.index for link in links(netlink) if link.flags & _RUNNING}
            if running.issuperset(indexes):
                return True
            left = end - time.monotonic()
            if left <= 0 or not changes.await_message(left):
                return False


def _uint(data: bytes | None) -> int:
    return int.from_bytes(data[:4], "little") if data else 0


def _string(data: bytes | None) -> str:
    return data.rstrip(b"\0").decode(errors="replace") if data else ""
