"""Joins an interface of a container's network namespace with the tap of its VM, and takes them apart.

All that arrives at one leaves by the other; the interface keeps its addresses, for whoever asks the
namespace. Who uses an interface is told by where our traffic control there leads to: to a tap that is there,
or nowhere any more. All but `park` and `move` are for a thread that is inside the namespace
(`namespace.inside`).
"""

from __future__ import annotations

import errno
import time

from bufferzone.errors import HostError
from bufferzone.linux import links as virtual
from bufferzone.linux import rtnetlink, tap
from bufferzone.linux.netlink import Netlink
from bufferzone.linux.tap import DEVICE as DEVICE
from bufferzone.network import namespace, tc
from bufferzone.network.interfaces import MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PARKED = "bz0"
#: how long the far end of an egress bridge may outlive its shim: the kernel removes namespaces later
_DYING_S = 3.0


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


def move(parked: int, target: int, name: str, mtu: int, *, end: str = PARKED) -> None:
    """Move the tap `end` from the namespace it is parked in to another (descriptors), as `name`.

    Raises OSError, `HostError` when it is gone.
    """

    def work() -> None:
        with Netlink() as netlink:
            index = _index(netlink, end)
            # before it can be seen there: who looks takes it for an interface of the container else
            rtnetlink.set_link(netlink, index, rtnetlink.alias(MARK))
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
            raise HostError(f"interface {interface_name}: does not exist any more", code="network")
        _check_free(netlink, ours, tap_link.index)
        mark = f"{MARK} {interface_name}"
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


def joined() -> dict[int, str]:
    """The index of each interface whose packets our traffic control sends to another, and that one's name."""
    with Netlink() as netlink:
        names = {link.index: link.name for link in rtnetlink.links(netlink)}
        led = {index: tc.targets(netlink, index) for index in names}
    return {index: names[target] for index, found in led.items() for target in found if target in names}


def resize(name: str, mtu: int) -> None:
    """Give the tap `name` another MTU. Raises OSError, `HostError` when it is gone."""
    with Netlink() as netlink:
        rtnetlink.set_link(netlink, _index(netlink, name), rtnetlink.mtu(mtu))


def part(taps: Mapping[str, tuple[int, str]]) -> None:
    """Take taps home, by name to (namespace, name there), and our traffic control off what they were joined
    with; what is not there is fine. Raises OSError.
    """
    with Netlink() as netlink:
        for link in rtnetlink.links(netlink):
            if link.name in taps:
                home, end = taps[link.name]
                rtnetlink.set_link(netlink, link.index, rtnetlink.namespace(home), rtnetlink.name(end))
        _sweep(netlink)


def clear(taps: Iterable[str]) -> None:
    """Remove what a killed shim left: the taps of these names and traffic control that leads nowhere.

    What other VMs use is left to them. Raises OSError.
    """
    names = set(taps)
    with Netlink() as netlink:
        for link in rtnetlink.links(netlink):
            if link.name in names:
                try:
                    virtual.remove(netlink, link.index)
                except OSError as error:
                    if error.errno != errno.ENODEV:  # it was going by itself
                        raise
        _sweep(netlink)


def _sweep(netlink: Netlink) -> None:
    """Take away our own traffic control wherever what it led to is gone."""
    for link in rtnetlink.links(netlink):
        found = tc.priorities(netlink, link.index)
        if tc.OURS in found <= set(tc.MINE) and not tc.targets(netlink, link.index):
            tc.remove(netlink, link.index)


def _check_free(netlink: Netlink, interface: rtnetlink.Link, own: int) -> None:
    """Raise `HostError` where another VM uses the interface, or somebody has traffic control there."""
    if tc.priorities(netlink, interface.index) - set(tc.MINE):
        raise HostError(
            f"interface {interface.name}: it has traffic control of its own (tc ingress)", code="network"
        )
    end = time.monotonic() + _DYING_S
    with Netlink(groups=rtnetlink.LINK_CHANGES) as changes:
        while others := tc.targets(netlink, interface.index) - {own}:
            kinds = {link.kind for link in rtnetlink.links(netlink) if link.index in others}
            left = end - time.monotonic()
            # a tap goes with its VMM; the far end of an egress bridge may be on its way out
            if kinds - {"veth"} or left <= 0 or not changes.await_message(left):
                raise HostError(
                    f"interface {interface.name}: already used by another VM",
                    hint="containers that share a network namespace must share the sandbox",
                    code="network-in-use",
                )


def _index(netlink: Netlink, name: str) -> int:
    for link in rtnetlink.links(netlink):
        if link.name == name:
            return link.index
    raise HostError(f"tap {name}: does not exist any more", code="network")


def _no_tap(error: OSError) -> HostError:
    hint = "modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else ""
    if error.errno == errno.EACCES:
        hint = f"ordinary users need the mode that udev gives it: chmod 0666 {tap.DEVICE}"
    return HostError(f"cannot make a tap with {tap.DEVICE}: {error.strerror}", hint=hint, code="no-tap")
