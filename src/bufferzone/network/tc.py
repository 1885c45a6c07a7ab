"""Traffic control, the little that is needed: all that arrives at one interface leaves by another.

An ingress qdisc with one u32 filter that matches every packet, since not every kernel has matchall. Our
filters have a priority of their own, by which they are known again. Source: tc-u32(8), tc-mirred(8),
linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import errno
import struct

from bufferzone.linux.netlink import CREATE, EXCL, Netlink, attribute, attributes, nested, text

_NEWQDISC, _DELQDISC, _NEWFILTER, _GETFILTER = 36, 37, 44, 46
_TCM = struct.Struct("=BxHiIII")
_INGRESS, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_ALL = 0x0300  # ETH_P_ALL in network byte order
#: the priority of our filters: "BZ"
OURS = 0x425A
#: of one that lets packets in, before them
_LET_IN = OURS - 1
_IPV4 = 0x0008  # ETH_P_IP in network byte order
_DESTINATION = 16  # where it is in an IPv4 header
_KIND, _OPTIONS = 1, 2
_U32_SELECTOR, _U32_ACTION = 5, 7
_STOLEN, _REDIRECT_OUT = 4, 1
_TERMINAL = 1
_MIRRED = struct.Struct("=IIiiiiI")  # struct tc_mirred: its last field is the target's index


def redirect(netlink: Netlink, source: int, target: int) -> None:
    """Send all that arrives at interface index `source` out of `target`.

    Raises OSError: EEXIST when there is an ingress qdisc already.
    """
    head = _TCM.pack(0, 0, source, _INGRESS_HANDLE, _INGRESS, 0)
    netlink.request(_NEWQDISC, head + text(_KIND, "ingress"), CREATE | EXCL)
    # no key that any packet fails: at offset 0, under the mask 0, is 0
    selector = struct.pack("=BBBxHHHhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _REDIRECT_OUT, target)
    action = nested(1, text(1, "mirred"), nested(2, attribute(2, mirred)))
    options = nested(_OPTIONS, attribute(_U32_SELECTOR, selector), nested(_U32_ACTION, action))
    head = _TCM.pack(0, 0, source, 0, _INGRESS_HANDLE, OURS << 16 | _ALL)
    netlink.request(_NEWFILTER, head + text(_KIND, "u32") + options, CREATE | EXCL)


def let_in(netlink: Netlink, source: int, address: bytes) -> None:
    """Of what arrives at `source`, which has been redirected, leave IPv4 packets for `address` to the
    namespace's own stack. Raises OSError.
    """
    if _LET_IN in priorities(netlink, source):
        return
    selector = struct.pack("=BBBxHHHhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0)
    selector += struct.pack("=I4sii", 0xFFFFFFFF, address, _DESTINATION, 0)
    options = nested(_OPTIONS, attribute(_U32_SELECTOR, selector))  # no action: on with it
    head = _TCM.pack(0, 0, source, 0, _INGRESS_HANDLE, _LET_IN << 16 | _IPV4)
    netlink.request(_NEWFILTER, head + text(_KIND, "u32") + options, CREATE | EXCL)


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
