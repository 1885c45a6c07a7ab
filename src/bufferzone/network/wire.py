"""Joins an interface of a container's network namespace with the tap of its VM, and takes them apart.

All that arrives at one leaves by the other; the interface keeps its addresses, for whoever asks the
namespace. `join` and `part` are for a thread that is inside the namespace (`namespace.inside`).
"""

from __future__ import annotations

import errno

from bufferzone.errors import HostError
from bufferzone.linux import rtnetlink, tap
from bufferzone.linux.netlink import Netlink
from bufferzone.linux.tap import DEVICE as DEVICE
from bufferzone.network import namespace, tc
from bufferzone.network.interfaces import MARK

PARKED = "bz0"


class Tap:
    """A tap, its descriptor for the VMM, and the network namespace it waits in."""

    def __init__(self, fd: int, namespace_fd: int) -> None:
        self.fd, self.namespace_fd = fd, namespace_fd


def park() -> Tap:
    """Make a tap in a namespace of its own: the VMM has it from the start, and it moves when there is
    something to join. Raises `HostError`.
    """
    try:
        where, fd = namespace.fresh(lambda: tap.create(PARKED))
    except OSError as error:
        raise _no_tap(error) from error
    return Tap(fd, where)


def move(parked: int, target: int, name: str, mtu: int) -> None:
    """Move the parked tap from one namespace (a descriptor) to another, as `name`. Raises OSError."""

    def work() -> None:
        with Netlink() as netlink:
            index = _index(netlink, PARKED)
            rtnetlink.set_link(
                netlink, index, rtnetlink.namespace(target), rtnetlink.name(name), rtnetlink.mtu(mtu)
            )

    namespace.inside(parked, work)


def join(interface_name: str, tap_name: str) -> None:
    """Join interface and tap, both in this thread's namespace; the tap comes up. Raises `HostError`.

    What a killed shim left at the interface is replaced; what another VM uses is not, nor is somebody
    else's traffic control.
    """
    with Netlink() as netlink:
        links = {link.name: link for link in rtnetlink.links(netlink)}
        ours, tap_link = links.get(interface_name), links.get(tap_name)
        if ours is None or tap_link is None:
            raise HostError(f"interface {interface_name}: it is gone", code="network")
        mark = f"{MARK} {interface_name}"
        if any(link.alias == mark for link in links.values()):
            raise HostError(
                f"interface {interface_name}: another VM uses it already",
                hint="containers that share a network namespace must share the sandbox",
                code="network-in-use",
            )
        if tc.priorities(netlink, ours.index) - {tc.OURS}:
            raise HostError(
                f"interface {interface_name}: it has traffic control of its own (tc ingress)", code="network"
            )
        try:
            rtnetlink.set_link(netlink, tap_link.index, rtnetlink.alias(mark), rtnetlink.no_own_address())
            rtnetlink.set_link(netlink, tap_link.index, up=True)
            for source, target in ((ours.index, tap_link.index), (tap_link.index, ours.index)):
                tc.remove(netlink, source)
                tc.redirect(netlink, source, target)
        except OSError as error:
            tc.remove(netlink, ours.index)
            raise HostError(
                f"interface {interface_name}: cannot be joined with the VM: {error.strerror}",
                hint="the kernel needs sch_ingress, cls_u32 and act_mirred",
                code="network",
            ) from error


def part(interface_name: str, tap_name: str = "") -> None:
    """Take our traffic control off the interface, as if it never was; nothing there is fine.

    `tap_name` is the tap it was joined with, if that may live still: what another VM uses by now is left.
    """
    with Netlink() as netlink:
        links = rtnetlink.links(netlink)
        mark = f"{MARK} {interface_name}"
        if any(link.alias == mark and link.name != tap_name for link in links):
            return
        for link in links:
            if link.name == interface_name and tc.priorities(netlink, link.index) == {tc.OURS}:
                tc.remove(netlink, link.index)


def _index(netlink: Netlink, name: str) -> int:
    for link in rtnetlink.links(netlink):
        if link.name == name:
            return link.index
    raise HostError(f"tap {name}: it is gone", code="network")


def _no_tap(error: OSError) -> HostError:
    hint = "modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else ""
    if error.errno == errno.EACCES:
        hint = f"ordinary users need the mode that udev gives it: chmod 0666 {tap.DEVICE}"
    return HostError(f"cannot make a tap with {tap.DEVICE}: {error.strerror}", hint=hint, code="no-tap")
