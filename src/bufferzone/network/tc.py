"""Traffic control, the little that is needed: all that arrives at one interface leaves by another.

An ingress qdisc with one u32 filter that matches every packet, since not every kernel has matchall. Our
filters have a priority of their own, by which they are known again. Source: tc-u32(8), tc-mirred(8),
linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import errno
import struct

from bufferzone.linux.netlink import CREATE, EXCL, Netlink, attribute, attributes, nested, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    #: (offset in the IP header, mask, value), all of which have to fit
    Match = tuple[tuple[int, bytes, bytes], ...]

_NEWQDISC, _DELQDISC, _NEWFILTER, _GETFILTER = 36, 37, 44, 46
_TCM = struct.Struct("=BxHiIII")
_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ALL = 0x0300  # ETH_P_ALL in network byte order
#: the priority of our filters: "BZ"
OURS = 0x425A
#: of those that come before them, for the namespace's own stack: from or for a loopback address (less its
#: offset), what is the resolver's (more its protocol), and the rest
MARTIAN, RESOLVE, _ARP, _LET_IN = OURS - 32, OURS - 24, OURS - 2, OURS - 1
#: all of ours
MINE = range(OURS - 64, OURS + 1)
_IPV4, _ARP_FRAME = 0x0008, 0x0608  # ETH_P_IP, ETH_P_ARP in network byte order
_DESTINATION = 16  # where it is in an IPv4 header
_KIND, _OPTIONS = 1, 2
_U32_SELECTOR, _U32_ACTION = 5, 7
_OK, _STOLEN, _REDIRECT_OUT, _MIRROR_OUT = 0, 4, 1, 2
_TERMINAL = 1
_MIRRED = struct.Struct("=IIiiiiI")  # struct tc_mirred: its last field is the target's index


def redirect(netlink: Netlink, source: int, target: int) -> None:
    """Send all that arrives at interface index `source` out of `target`.

    Raises OSError: EEXIST when there is an ingress qdisc already.
    """
    head = _TCM.pack(0, 0, source, _INGRESS_HANDLE, _INGRESS, 0)
    netlink.request(_NEWQDISC, head + text(_KIND, "ingress"), CREATE | EXCL)
    # no key that any packet fails: at offset 0, under the mask 0, is 0
    _add(netlink, source, OURS, _ALL, ((0, bytes(4), bytes(4)),), _mirred(target, _STOLEN, _REDIRECT_OUT))


def let_in(netlink: Netlink, source: int, address: bytes) -> None:
    """Of what arrives at `source`, which has been redirected, leave IPv4 packets for `address` to the
    namespace's own stack. Raises OSError.
    """
    pass_on(netlink, source, _LET_IN, ((_DESTINATION, b"\xff\xff\xff\xff", address),))


def pass_on(netlink: Netlink, source: int, priority: int, match: Match) -> None:
    """The same of IPv4 packets that match, by one filter of this priority. Raises OSError."""
    if priority not in priorities(netlink, source):
        _add(netlink, source, priority, _IPV4, match)  # no action: on with it


def copy_arp(netlink: Netlink, source: int, target: int) -> None:
    """Send ARP that arrives at `source` out of `target`, and leave it to the namespace's stack as well."""
    if _ARP not in priorities(netlink, source):
        everything = ((0, bytes(4), bytes(4)),)
        _add(netlink, source, _ARP, _ARP_FRAME, everything, _mirred(target, _OK, _MIRROR_OUT))


def _mirred(target: int, verdict: int, how: int) -> bytes:
    mirred = _MIRRED.pack(0, 0, verdict, 0, 0, how, target)
    return nested(1, text(1, "mirred"), nested(2, attribute(2, mirred)))


def _add(
    netlink: Netlink, source: int, priority: int, protocol: int, match: Match, action: bytes = b""
) -> None:
    """A filter: packets whose bytes at each offset, under a mask, are a value."""
    keys = b"".join(_key(*part) for part in match)
    selector = struct.pack("=BBBxHHHhI", _TERMINAL, 0, len(match), 0, 0, 0, 0, 0) + keys
    options = attribute(_U32_SELECTOR, selector) + (nested(_U32_ACTION, action) if action else b"")
    head = _TCM.pack(0, 0, source, 0, _INGRESS_HANDLE, priority << 16 | protocol)
    netlink.request(_NEWFILTER, head + text(_KIND, "u32") + attribute(_OPTIONS, options), CREATE | EXCL)


def _key(offset: int, mask: bytes, value: bytes) -> bytes:
    """struct tc_u32_key, which knows whole words."""
    before = bytes(offset % 4)
    mask, value = ((before + part).ljust(4, b"\0") for part in (mask, value))
    return struct.pack("=4s4sii", mask, value, offset - len(before), 0)


def remove(netlink: Netlink, source: int) -> None:
    """Take the ingress qdisc away, and the filter with it; nothing there is fine. Raises OSError."""
    head = _TCM.pack(0, 0, source, _INGRESS_HANDLE, _INGRESS, 0)
    try:
        # by name: clsact, which may be somebody else's, has the same handle and parent
        netlink.request(_DELQDISC, head + text(_KIND, "ingress"))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def priorities(netlink: Netlink, source: int) -> set[int]:
    """The priorities of the filters at the ingress of `source`: `OURS` alone, or somebody else's too."""
    return {_TCM.unpack_from(body)[5] >> 16 for body in _filters(netlink, source)}


def targets(netlink: Netlink, source: int) -> set[int]:
    """Where our filters at the ingress of `source` lead to: indexes of interfaces that are there."""
    found = set()
    for body in _filters(netlink, source):
        if _TCM.unpack_from(body)[5] >> 16 != OURS:
            continue
        options = attributes(attributes(body[_TCM.size :]).get(_OPTIONS, b""))
        action = attributes(attributes(options.get(_U32_ACTION, b"")).get(1, b""))
        mirred = attributes(action.get(2, b"")).get(2, b"")
        if len(mirred) >= _MIRRED.size:
            found.add(_MIRRED.unpack_from(mirred)[-1])
    return found - {0}  # what mirred shows of a target that is gone


def _filters(netlink: Netlink, source: int) -> list[bytes]:
    try:
        return netlink.dump(_GETFILTER, _TCM.pack(0, 0, source, 0, _INGRESS_HANDLE, 0))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV):
            return []  # no qdisc, no interface
        raise
