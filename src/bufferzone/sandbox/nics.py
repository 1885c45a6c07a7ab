"""The NICs of one VM: which interface of the container's namespace each of them is at the moment.

A NIC stays with the VM; what is joined with it may change. Its tap, or the far end of the egress bridge
around the tap, is in the container's namespace while it is of use there, else at home, where it was made.
"""

from __future__ import annotations

import os
from functools import partial

from bufferzone import log
from bufferzone.errors import HostError
from bufferzone.linux import identity
from bufferzone.network import egress_bridge, namespace, rootlessport, tcfilter
from bufferzone.record import replace
from bufferzone.sandbox.crossing import Crossing
from bufferzone.wire.network import nic_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bufferzone.egress import Rule
    from bufferzone.network.interfaces import Interface
    from bufferzone.vmm.interface import Vmm


class Nic:
    """One of them: `home` is the namespace its tap was made in, `name` what the tap is called elsewhere."""

    def __init__(self, number: int, name: str, home: int) -> None:
        self.number, self.name, self.home = number, name, home
        self.mac = nic_mac(number)
        self.interface: Interface | None = None
        self.placed = self.has_port_route = False


class Nics:
    """All of them. `first` is there from the start and owned; None: this machine has no taps. `rules` are the
    egress policy, None: none. Not thread-safe but for `refused`.
    """

    def __init__(self, first: tcfilter.Tap | None, vmm: Vmm, rules: tuple[Rule, ...] | None) -> None:
        self._bridges = None if rules is None else egress_bridge.EgressBridges(rules)
        self._end = tcfilter.PARKED if self._bridges is None else egress_bridge.FAR
        self._vmm = vmm
        # Podman's port handler for ordinary users calls from inside the namespace; so does root's where
        # slirp4netns made the interface, a tap
        self._port_routes = identity.is_namespace_root()
        # not from our pid: that may be somebody else's by the time a clean-up looks for the name
        self._token = os.urandom(4).hex()
        self._all: list[Nic] = []
        self.crossing = Crossing()
        if first is not None:
            os.close(first.fd)  # the VMM has it; with the VMM the tap goes
            self._all.append(Nic(0, self._name(0), first.namespace_fd))

    @property
    def macs(self) -> dict[str, str]:
        """What the NIC of each interface shows by itself, by the interface's name."""
        return {nic.interface.name: nic.mac for nic in self._all if nic.interface is not None}

    @property
    def count(self) -> int:
        """How many the VM has, in use or not."""
        return len(self._all)

    def follow(self, fd: int, found: Sequence[Interface], record: Callable[[list[str]], None]) -> None:
        """Have these interfaces of the namespace `fd` for NICs, and nothing else.

        `record` notes the names of the taps that will be in the namespace. Raises `HostError`, `VmmError`,
        OSError; then what could be joined is, see `macs`, and what is not in use is at home.
        """
        leads = namespace.inside(fd, tcfilter.joined) if any(nic.placed for nic in self._all) else {}
        new = list(found)
        for nic in self._all:
            # by what the kernel does now: the interface may be another one of the same name or index
            nic.interface = next((i for i in new if leads.get(i.index) == nic.name), None)
            if nic.interface is not None:
                new.remove(nic.interface)
                self._fit(fd, nic, nic.interface)
        try:
            if new:
                self._need_tap(new)
                record([self._name(number) for number in range(max(len(found), len(self._all)))])
            for interface in new:
                self._join(fd, interface)
        finally:
            self._take_home(fd, [nic for nic in self._all if nic.interface is None])
            for nic in self._all:
                self._open(fd, nic)
            if self._bridges is None:
                self._cross(fd)

    def told(self, found: Sequence[Interface]) -> tuple[tuple[Nic, Interface], ...]:
        """The interfaces, as followed last, each with its NIC and with what the guest needs for
        `rootlessport` and `loopback`.
        """
        nics = {nic.interface.name: nic for nic in self._all if nic.interface is not None}
        told = []
        for interface in found:
            nic = nics[interface.name]
            interface = self.crossing.with_rows(interface, nic.number)
            if nic.has_port_route:
                route, neighbour = rootlessport.guest_routes(nic.number)
                more = (*interface.neighbours, neighbour)
                interface = replace(interface, routes=(*interface.routes, route), neighbours=more)
            told.append((nic, interface))
        return tuple(told)

    def part(self, fd: int) -> None:
        """Take everything home from the namespace `fd`. Raises OSError."""
        try:
            self._take_home(fd, self._all)
        finally:
            self.crossing.end(fd)

    def close(self) -> None:
        """Forget the namespaces the taps were made in."""
        while self._all:
            os.close(self._all.pop().home)
        if self._bridges is not None:
            self._bridges.close()

    def refused(self) -> dict[str, int]:
        """Packets refused, as `EgressBridges.counters` has them; empty where there is no policy."""
        return {} if self._bridges is None else self._bridges.counters()

    def _name(self, number: int) -> str:
        return f"bz{self._token}.{number}"

    def _need_tap(self, new: Sequence[Interface]) -> None:
        if not self._all:
            names = ", ".join(interface.name for interface in new)
            raise HostError(
                f"the VM has no NIC for {names}: {tcfilter.DEVICE} cannot be used",
                hint="modprobe tun, and let the runtime open it",
                code="no-tap",
            )

    def _join(self, fd: int, interface: Interface) -> None:
        nic = next((nic for nic in self._all if nic.interface is None), None) or self._plug()
        self._place(fd, nic, interface)
        namespace.inside(fd, partial(tcfilter.join, interface.name, nic.name))
        nic.interface = interface

    def _plug(self) -> Nic:
        if not self._vmm.features.hotplug_nic:
            raise HostError(f"{self._vmm.features.label} cannot plug another NIC", code="vmm-feature")
        tap, number = tcfilter.park(), len(self._all)
        try:
            self._vmm.plug_nic(tap.fd, number=number, mac=nic_mac(number))
        except BaseException:
            os.close(tap.namespace_fd)
            raise
        finally:
            os.close(tap.fd)
        self._all.append(Nic(number, self._name(number), tap.namespace_fd))
        return self._all[-1]

    def _place(self, fd: int, nic: Nic, interface: Interface) -> None:
        """Have the tap itself in the container's namespace, or the far end of its egress bridge."""
        if nic.placed:
            self._fit(fd, nic, interface)
            return
        if self._bridges is not None:
            self._bridges.follow(nic.number, nic.home, interface)
        tcfilter.move(nic.home, fd, nic.name, interface.mtu, end=self._end)
        nic.placed = True

    def _fit(self, fd: int, nic: Nic, interface: Interface) -> None:
        """Follow what has changed of an interface."""
        if self._bridges is not None:
            self._bridges.follow(nic.number, nic.home, interface)
        namespace.inside(fd, partial(tcfilter.resize, nic.name, interface.mtu))

    def _open(self, fd: int, nic: Nic) -> None:
        nic.has_port_route = False
        if nic.interface is not None and (self._port_routes or nic.interface.kind == "tun"):
            with log.passing_over(f"routes of published ports for {nic.name}", OSError):
                nic.has_port_route = namespace.inside(
                    fd, partial(rootlessport.add_routes, nic.interface, nic.name, nic.number)
                )

    def _cross(self, fd: int) -> None:
        joined = [
            (nic.number, nic.name, nic.interface)
            for nic in self._all
            if nic.interface is not None and not nic.has_port_route
        ]
        self.crossing.follow(fd, joined)

    def _take_home(self, fd: int, nics: Sequence[Nic]) -> None:
        for nic in nics:
            if nic.has_port_route and nic.interface is not None:
                with log.passing_over(f"routes of published ports of {nic.name}", OSError):
                    namespace.inside(fd, partial(rootlessport.remove_routes, nic.interface))
            nic.has_port_route = False
        placed = {nic.name: (nic.home, self._end) for nic in nics if nic.placed}
        for nic in nics:
            nic.interface, nic.placed = None, False
        if placed:
            namespace.inside(fd, partial(tcfilter.part, placed))
