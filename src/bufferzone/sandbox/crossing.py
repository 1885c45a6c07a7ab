"""Which of a sandbox's NICs leads between the loopback of the container's namespace and the guest's, and the
relay that serves the resolver there; see `network.loopback`.

Nobody asks for the resolver: where somebody listens at its address, the guest reaches it. 127.0.0.1 is led to
the guest where `localhost` says so, as for pods. Behind an egress policy nothing crosses, which no rule
foresees. What cannot be is one line in the log: the network is there without it.
"""

from __future__ import annotations

from functools import partial

from bufferzone import log
from bufferzone.errors import HostError
from bufferzone.network import linklocal, loopback, namespace, rootlessport
from bufferzone.record import replace
from bufferzone.wire.network import RESOLVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.network.interfaces import Interface
    from bufferzone.network.resolver import Relay

    #: (number of the NIC, name of its tap, the interface it is)
    Joined = tuple[int, str, Interface]


class Crossing:
    """For one network namespace at a time. Not thread-safe."""

    def __init__(self) -> None:
        self.localhost = False
        self._relay: Relay | None = None
        self._to_localhost = self._to_resolver = ""  # names of the interfaces that lead there

    def follow(self, fd: int, joined: Sequence[Joined]) -> None:
        """Have the first interface that can lead there, of what is joined in the namespace `fd`."""
        self._to_localhost = self._to_resolver = ""
        usable = [row for row in joined if _is_usable(row[2])]
        if usable:
            with log.passing_over("lead over the loopback of the network namespace", OSError, HostError):
                namespace.inside(fd, partial(self._lead, usable))
        if self._to_resolver and self._relay is None:
            from bufferzone.network.resolver import Relay  # most containers need none

            try:
                self._relay = Relay(fd)
            except OSError as error:
                log.say(f"names of the container's network are not resolved: {error.strerror}")

    def end(self, fd: int) -> None:
        """The taps have left the namespace `fd`."""
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._to_localhost:
            with log.passing_over("give 127.0.0.1 back", OSError):
                namespace.inside(fd, loopback.give_back_localhost)
        self._to_localhost = self._to_resolver = ""

    def is_localnet(self, interface: Interface) -> bool:
        """Whether the guest has to believe loopback addresses there."""
        return interface.name in (self._to_localhost, self._to_resolver)

    def guest_address(self, interface: Interface, number: int) -> bytes:
        """From where the guest asks the resolver, over the NIC of that number; empty: not over this one."""
        return linklocal.guest_address(number) if interface.name == self._to_resolver else b""

    def with_rows(self, interface: Interface, number: int) -> Interface:
        """The interface with the routes and neighbours that the guest needs of it."""
        routes, neighbours = interface.routes, interface.neighbours
        if interface.name == self._to_localhost:
            route, neighbour = rootlessport.guest_routes(number)
            routes, neighbours = (*routes, route), (*neighbours, neighbour)
        if interface.name == self._to_resolver:
            neighbours = (*neighbours, linklocal.neighbour(RESOLVER, number))
        return replace(interface, routes=routes, neighbours=neighbours)

    def _lead(self, usable: Sequence[Joined]) -> None:
        """In the namespace."""
        number, tap, interface = usable[0]
        if self.localhost:
            loopback.lead_to_localhost(interface, tap, number)
            self._to_localhost = interface.name
        if self._relay is not None or loopback.has_resolver():
            for _, tap_, other in usable:
                loopback.let_answers_in(other, tap_)
            loopback.lead_to_resolver(interface, tap, number)
            self._to_resolver = interface.name


def _is_usable(interface: Interface) -> bool:
    found = [address.local for address in interface.addresses if len(address.local) == 4]
    return interface.up and bool(found) and not any(linklocal.is_one(address) for address in found)
