"""The network of one sandbox: which namespace is whose, and when its interfaces become the VM's.

One NIC is in every VM from the start, with a tap that waits in a namespace of its own; at `start` it becomes
the first interface found in the container's namespace. Further ones are plugged then.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from functools import partial

from bufferzone.errors import BufferzoneError, GuestError, HostError, SpecError
from bufferzone.network import gate, interfaces, namespace, wire
from bufferzone.oci import host
from bufferzone.vmm import nic
from bufferzone.wire import network as messages
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

    from bufferzone.egress import Rule
    from bufferzone.network.interfaces import Interface
    from bufferzone.sandbox.agent import AgentClient
    from bufferzone.sandbox.machine import Machine
    from bufferzone.vmm.driver import Vmm

#: how long a guest may take to find a NIC that was plugged
_PLUG_S = 10.0
_AGAIN_S = 0.005


def has_taps() -> bool:
    """Whether we may make tap devices at all: whether a VM of ours has a NIC."""
    return os.access(wire.DEVICE, os.R_OK | os.W_OK)


def park() -> wire.Tap:
    """The tap of a VM that is being started. Raises `HostError`."""
    return wire.park()


def idle(stack: ExitStack, machine: Machine) -> int:
    """A NIC's back end with nobody behind it, for a VM that becomes a template: a descriptor, -1: no NIC."""
    if machine.user_network:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        stack.callback(theirs.close)
        return theirs.fileno()
    if not machine.nic:
        return -1
    tap = wire.park()
    stack.callback(os.close, tap.fd)
    os.close(tap.namespace_fd)
    return tap.fd


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
    """Taps and wires of a sandbox. `record(identity, path, interfaces)` notes what a killed shim would leave.

    The first namespace with an interface in it is the sandbox's. `tap` (None: this machine has none) is
    owned; `close` gives everything back. `rules` are the egress policy, None: none. Thread-safe.
    """

    def __init__(
        self,
        tap: wire.Tap | None,
        vmm: Vmm,
        agent_client: AgentClient,
        record: Callable[[list[int], str, list[str]], None],
        rules: tuple[Rule, ...] | None,
    ) -> None:
        self._gates = None if rules is None else gate.Gates(rules)
        self._tap, self._vmm, self._agent, self._record = tap, vmm, agent_client, record
        self._lock = threading.Lock()
        self._namespace = -1
        self._nics: dict[str, str] = {}  # interface -> the MAC that its NIC shows by itself
        self._joined: dict[str, str] = {}  # interface -> tap
        self._told = messages.NetworkRequest()
        self._failure: BufferzoneError | None = None
        if tap is not None:
            os.close(tap.fd)  # the VMM has it; with the VMM the tap goes

    def begin(self) -> None:
        """Called before a container's process runs; a network that lies in no namespace is told here."""

    def prepare(self, fd: int, path: str) -> None:
        """Begin with what is in the namespace already, while the caller gets ready to start; `attach` tells
        what went wrong.
        """
        fd = os.dup(fd)

        def work() -> None:
            try:
                self.attach(fd, path)
            except BufferzoneError:
                pass  # kept for `attach`
            finally:
                os.close(fd)

        threading.Thread(target=work, name="network", daemon=True).start()

    def attach(self, fd: int, path: str) -> None:
        """Make the interfaces that are in the namespace `fd` now the VM's.

        `path` is where the namespace may be found later, empty if it goes with the container. Raises
        `HostError`, `GuestError` or `VmmError`, and the same ever after; then nothing is joined.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._namespace >= 0 and not os.path.sameopenfile(self._namespace, fd):
                return
            try:
                self._attach(fd, path)
            except (BufferzoneError, OSError) as error:
                words = f"the network: {error}"
                known = error if isinstance(error, BufferzoneError) else HostError(words, code="network")
                self._failure = known
                self._part()
                raise known from error

    def leave(self, fd: int) -> None:
        """The container of the namespace `fd` is gone: if it was the sandbox's, `part`."""
        with self._lock:
            ours = self._namespace >= 0 and os.path.sameopenfile(self._namespace, fd)
        if ours:
            self.part()

    @property
    def is_joined(self) -> bool:
        """Whether interfaces of the container are the VM's."""
        return bool(self._joined)

    def part(self) -> None:
        """Take the interfaces and the VM apart, for good."""
        with self._lock:
            self._failure = self._failure or HostError("the network was taken apart", code="network")
            self._part()

    def close(self) -> None:
        """Part, and forget the namespace the tap waited in."""
        self.part()
        if self._tap is not None:
            os.close(self._tap.namespace_fd)
            self._tap = None
        if self._gates is not None:
            self._gates.close()

    def refused(self) -> dict[str, int]:
        """Packets refused, as `gate.Gates.counters` has them; empty where there is no policy."""
        try:
            return {} if self._gates is None else self._gates.counters()
        except (OSError, BufferzoneError):
            return {}  # the sandbox is being taken down

    def _part(self) -> None:
        if self._namespace < 0:
            return
        fd, self._namespace = self._namespace, -1
        try:
            for interface, tap in self._joined.items():
                namespace.inside(fd, partial(wire.part, interface, tap))
        except (OSError, BufferzoneError):
            pass  # the namespace is being taken down itself
        finally:
            os.close(fd)

    def _attach(self, fd: int, path: str) -> None:
        found = namespace.inside(fd, lambda: interfaces.scan(messages.MOST_INTERFACES))
        gone = self._nics.keys() - {interface.name for interface in found}
        if gone:
            raise HostError(f"interface {min(gone)}: it went while the container was created", code="network")
        new = [interface for interface in found if interface.name not in self._nics]
        if new:
            self._join(fd, path, new)
        if self._gates is not None:
            self._gates.renew(found)
        self._tell(found)

    def _join(self, fd: int, path: str, new: list[Interface]) -> None:
        tap = self._tap
        if tap is None:
            names = ", ".join(interface.name for interface in new)
            raise HostError(
                f"the VM has no NIC for {names}: {wire.DEVICE} cannot be used",
                hint="modprobe tun, and let the runtime open it",
                code="no-tap",
            )
        if self._namespace < 0:
            self._namespace = os.dup(fd)
        seen = os.fstat(fd)
        self._record([seen.st_dev, seen.st_ino], path, [interface.name for interface in new])
        for interface in new:
            number = len(self._nics)
            name = f"bz{os.getpid()}.{number}"
            self._nics[interface.name] = interface.mac.hex(":") if number else messages.FIRST_MAC
            if number:
                self._plug(fd, number, name, interface)
            else:
                self._place(tap.namespace_fd, fd, name, interface)
            namespace.inside(fd, partial(wire.join, interface.name, name))
            self._joined[interface.name] = name

    def _plug(self, fd: int, number: int, name: str, interface: Interface) -> None:
        tap = wire.park()
        try:
            self._place(tap.namespace_fd, fd, name, interface)
            nic.plug(self._vmm, tap.fd, number=number, mac=self._nics[interface.name])
        finally:
            os.close(tap.fd)
            os.close(tap.namespace_fd)

    def _place(self, parked: int, fd: int, name: str, interface: Interface) -> None:
        """Have the tap itself in the container's namespace, or the far end of its gate, called `name`."""
        if self._gates is None:
            wire.move(parked, fd, name, interface.mtu)
        else:
            self._gates.add(parked, (fd, name), interface)

    def _tell(self, found: tuple[Interface, ...]) -> None:
        """Have the guest take the interfaces over, unless it has; it finds plugged NICs at its own pace."""
        request = messages.NetworkRequest(
            interfaces=[_message(self._nics[interface.name], interface) for interface in found]
        )
        if request == self._told:
            return
        end = time.monotonic() + _PLUG_S
        while True:
            try:
                self._agent.call("Network", request, Empty)
                self._told = request
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
