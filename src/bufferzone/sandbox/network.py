"""The network of one sandbox: which namespace is whose, and when its interfaces become the VM's.

One NIC is in every VM from the start, with a tap that waits in a namespace of its own; at `start` it becomes
the first interface found in the container's namespace. Further ones are plugged then.
"""

from __future__ import annotations

import os
import select
import time
from functools import partial

from bufferzone.errors import BufferzoneError, GuestError, HostError, SpecError
from bufferzone.network import interfaces, namespace, wire
from bufferzone.oci import host
from bufferzone.vmm import nic
from bufferzone.wire import network as messages
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.network.interfaces import Interface
    from bufferzone.sandbox.agent import AgentClient
    from bufferzone.vmm.driver import Vmm

#: how long a guest may take to find a NIC that was plugged
_PLUG_S = 10.0
_AGAIN_S = 0.005


def has_taps() -> bool:
    """Whether this machine has tap devices at all: whether a VM of it has a NIC."""
    return os.path.exists(wire.DEVICE)


def park() -> wire.Tap:
    """The tap of a VM that is being started. Raises `HostError`."""
    return wire.park()


def namespace_of(spec: dict[str, Any], pid: int) -> int:
    """A descriptor of the network namespace of `spec`'s container, -1 where it has none to wire.

    A namespace without a path is that of the process `pid` that stands for the container, or nobody's.
    Raises `SpecError` for the host's and for one that cannot be opened.
    """
    entry = host.network_entry(spec)
    if entry is None:
        return -1
    index, path = entry
    if not path and pid == os.getpid():
        return -1
    try:
        fd = namespace.open_path(path or f"/proc/{pid}/ns/net")
    except OSError as error:
        where = f"linux.namespaces[{index}].path"
        raise SpecError(f"config.json: {where}: {(error.strerror or '').lower()}: {path}") from error
    if not namespace.is_ours(fd):
        return fd
    os.close(fd)  # nobody made one: `run` is its own waiter and stays where it is
    return -1


class Network:
    """Taps and wires of a sandbox. `record(namespace, interfaces)` notes what a killed shim would leave.

    Owns `tap` (None: this machine has none) and gives everything back in `close`.
    """

    def __init__(
        self,
        tap: wire.Tap | None,
        vmm: Vmm,
        agent_client: AgentClient,
        record: Callable[[list[int], str, list[str]], None],
    ) -> None:
        self._tap, self._vmm, self._agent, self._record = tap, vmm, agent_client, record
        self._namespace = -1
        self._joined: list[str] = []
        self._used = False
        if tap is not None:
            os.close(tap.fd)  # the VMM has it; with the VMM the tap goes

    def attach(self, fd: int, path: str) -> None:
        """Wire the interfaces that are in the namespace `fd` now; later calls do nothing.

        `path` is where the namespace may be found later, empty if it goes with the container. Raises
        `HostError`, `GuestError` or `VmmError`; then nothing is joined.
        """
        if self._used:
            return
        found = namespace.inside(fd, lambda: interfaces.scan(messages.MOST_INTERFACES))
        if not found:
            return
        self._used = True
        self._namespace = os.dup(fd)
        try:
            self._join(found, path)
            self._tell(found)
        except BaseException as error:
            self.part()
            if isinstance(error, OSError):
                raise HostError(f"the network: {error.strerror}", code="network") from error
            raise

    def part(self) -> None:
        """Take the interfaces and the VM apart."""
        if self._namespace < 0:
            return
        fd, self._namespace = self._namespace, -1
        try:
            for name in self._joined:
                namespace.inside(fd, partial(wire.part, name))
        except (OSError, BufferzoneError):
            pass  # the namespace is being taken down itself
        finally:
            self._joined.clear()
            os.close(fd)

    def close(self) -> None:
        """Part, and forget the namespace the tap waited in."""
        self.part()
        if self._tap is not None:
            os.close(self._tap.namespace_fd)
            self._tap = None

    def _join(self, found: tuple[Interface, ...], path: str) -> None:
        tap, fd = self._tap, self._namespace
        if tap is None:
            names = ", ".join(interface.name for interface in found)
            raise HostError(
                f"the VM has no NIC for {names}: {wire.DEVICE} cannot be used",
                hint="modprobe tun, and let the runtime open it",
                code="no-tap",
            )
        seen = os.fstat(fd)
        self._record([seen.st_dev, seen.st_ino], path, [interface.name for interface in found])
        for number, interface in enumerate(found):
            name = f"bz{os.getpid()}.{number}"
            if number == 0:
                wire.move(tap.namespace_fd, fd, name, interface.mtu)
            else:
                self._plug(number, name, interface)
            self._joined.append(interface.name)
            namespace.inside(fd, partial(wire.join, interface.name, name))

    def _plug(self, number: int, name: str, interface: Interface) -> None:
        tap = namespace.inside(self._namespace, lambda: wire.create(name, interface.mtu))
        try:
            nic.plug(self._vmm, tap, number=number, mac=interface.mac.hex(":"))
        finally:
            os.close(tap)

    def _tell(self, found: tuple[Interface, ...]) -> None:
        """Have the guest take the interfaces over; it finds plugged NICs at its own pace."""
        macs = [messages.FIRST_MAC, *(interface.mac.hex(":") for interface in found[1:])]
        request = messages.NetworkRequest(
            interfaces=[_message(mac, interface) for mac, interface in zip(macs, found, strict=True)]
        )
        end = time.monotonic() + _PLUG_S
        while True:
            try:
                self._agent.call("Network", request, Empty)
                return
            except GuestError as error:
                if error.code != "no-nic" or time.monotonic() > end:
                    raise
                select.select([], [], [], _AGAIN_S)


def _message(nic_mac: str, interface: Interface) -> messages.Interface:
    def row(record: Any, *without: str) -> dict[str, Any]:
        return {key: value for key, value in record.fields().items() if key not in ("index", *without)}

    return messages.Interface(
        nic=nic_mac,
        name=interface.name,
        mac=interface.mac,
        mtu=interface.mtu,
        up=interface.up,
        addresses=[messages.Address(**row(record, "flags")) for record in interface.addresses],
        routes=[messages.Route(**row(record, "several")) for record in interface.routes],
        neighbours=[messages.Neighbour(**row(record)) for record in interface.neighbours],
    )
