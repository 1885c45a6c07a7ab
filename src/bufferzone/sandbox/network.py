"""The network of one sandbox: which namespace is whose, and when its interfaces become the VM's.

One NIC is in every VM from the start, with a tap that waits in a namespace of its own; at `start` it becomes
the first interface found in the container's namespace. Further ones are plugged then. From `start` on, what
changes in the namespace is followed (`podman network connect`, `disconnect`, `reload`); what cannot be is one
line in the log.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from contextlib import contextmanager
from functools import partial

from bufferzone import log
from bufferzone.errors import BufferzoneError, GuestError, HostError, SpecError
from bufferzone.network import interfaces, namespace, ruleset, tcfilter, watch
from bufferzone.oci import host
from bufferzone.recorder import Silent
from bufferzone.sandbox.nics import Nics
from bufferzone.vm.agent_client import if_alive
from bufferzone.wire import network as messages
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

    from bufferzone.egress import Rule
    from bufferzone.network.interfaces import Interface
    from bufferzone.recorder.journal import Journal
    from bufferzone.vm.agent_client import AgentClient
    from bufferzone.vmm.interface import Vmm

#: what the kernel says when the namespace, or an interface in it, is being taken down by somebody else
_GONE = (errno.ENODEV, errno.ENOENT)
#: how long a guest may take to find a NIC that was plugged, and how often it is asked
_PLUG_S = 10.0
_AGAIN_S = 0.005


def namespace_of(spec: dict[str, Any], pid: int) -> int:
    """A descriptor of the network namespace of `spec`'s container, -1 where it has none to attach.

    A namespace without a path is that of the process `pid` that stands for the container, or nobody's.
    Raises `SpecError` for the host's and for one that cannot be opened.
    """
    entry = host.network_namespace(spec)
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
    os.close(fd)  # nobody made one: a program that does more than wait for the end stays where it is
    return -1


_SILENT = Silent()
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


class TapNetwork:
    """The taps of a sandbox and what they are joined with. `record(identity, path, taps)` notes what a killed
    shim would leave.

    The first namespace with an interface in it is the sandbox's. What is in there at `attach` counts, and
    from then on what changes.
    `tap` (None: this machine has none) is owned; `close` gives everything back. `rules` are the egress
    policy, None: none; `recorder` is told of changes. Thread-safe.
    """

    def __init__(
        self,
        tap: tcfilter.Tap | None,
        vmm: Vmm,
        agent_client: AgentClient,
        record: Callable[[list[int], str, list[str]], None],
        rules: tuple[Rule, ...] | None,
        recorder: Journal | Silent = _SILENT,
    ) -> None:
        self._nics = Nics(tap, vmm, rules)
        self._agent, self._record, self._recorder = agent_client, record, recorder
        self._lock = threading.Lock()
        self._namespace, self._path = -1, ""
        self._watch: watch.Watch | None = None
        self._found: tuple[Interface, ...] | None = None  # as followed last; None: nobody knows
        self._said = ""
        # None: nobody knows
        self._configured: messages.SetNetworkRequest | None = messages.SetNetworkRequest()
        self._waiting: dict[threading.Thread, int] = {}  # namespaces that nobody has looked into yet
        self._started = self._parted = False
        self._refused: dict[str, int] = {} if rules is None else dict.fromkeys(ruleset.COUNTERS, 0)

    def begin(self) -> None:
        """Called before a container's process runs; a network that lies in no namespace is told here."""

    def share_localhost(self) -> None:
        """Who calls 127.0.0.1 in the namespace is to reach the guest's, from the next look on."""
        self._nics.crossing.localhost = True

    def prepare(self, fd: int, path: str) -> None:
        """A head start, while the caller gets ready to start: take over what is in the namespace already.

        Nothing is where anything there is not ready yet, and `attach` looks again in any case: a failure here
        is of no consequence.
        """
        with self._lock:
            if self._started or self._parted:
                return  # whoever runs in there is not to be disturbed
            thread = threading.Thread(target=self._prepare, args=(path,), name="network", daemon=True)
            self._waiting[thread] = os.dup(fd)
            thread.start()

    def attach(self, fd: int, path: str) -> None:
        """Make the interfaces that are in the namespace `fd` now the VM's.

        `path` is where the namespace may be found later, empty if it goes with the container. Raises
        `HostError`, `GuestError` or `VmmError`; then nothing is joined, unless somebody runs on it already.
        """
        with self._lock:
            if self._parted:
                raise HostError("the network was taken apart", code="network")
            if self._namespace >= 0 and not os.path.sameopenfile(self._namespace, fd):
                if self.is_joined:
                    return
                self._part()  # there is nothing in the other
            try:
                found = self._look(fd, path, scan=self._watch_and_scan)
            except (BufferzoneError, OSError) as error:
                self._give_up(error)
            self._started = self._started or bool(found)
            if self._watch is not None:
                self._watch.start(self._follow)

    def leave(self, fd: int) -> None:
        """The container of the namespace `fd` is gone: if it was the sandbox's, take them apart."""
        with self._lock:
            for thread, other in list(self._waiting.items()):
                if os.path.sameopenfile(other, fd):
                    self._forget(thread)
            if self._namespace >= 0 and os.path.sameopenfile(self._namespace, fd):
                self._part()

    @property
    def helpers(self) -> tuple[tuple[str, int], ...]:
        """None: a tap is the kernel's."""
        return ()

    @property
    def is_joined(self) -> bool:
        """Whether interfaces of the container are the VM's."""
        return bool(self._nics.macs)

    @property
    def not_saveable(self) -> str:
        """Why a VM with this network cannot be saved; empty when it can."""
        return "" if self._nics.count <= 1 else "it has several interfaces"

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """While entered, no NIC of the guest has a driver, as in a template; then all is as it was before.

        Restored with a NIC in use, QEMU 7.2 died by SIGSEGV when the guest ran. Raises what the guest says.
        """
        with self._lock:
            before = self._configured
            if before is None or not before.interfaces:
                yield
                return
            self._configured = None
            self._agent.call("SetNetwork", messages.SetNetworkRequest(), Empty)
            try:
                yield
            finally:
                with if_alive():
                    self._agent.call("SetNetwork", before, Empty)
                    self._configured = before

    def part(self) -> None:
        """Take the interfaces and the VM apart, for good."""
        with self._lock:
            self._parted = True
            for thread in list(self._waiting):
                self._forget(thread)
            self._part()

    def close(self) -> None:
        """Part, and forget the namespaces the taps waited in."""
        self.part()
        self._nics.close()

    def refused(self) -> dict[str, int]:
        """Packets refused, as `EgressBridges.counters` has them; empty where there is no policy."""
        try:
            self._refused = self._nics.refused()
        except (OSError, BufferzoneError) as error:
            # the last known: that there is a policy does not become untrue
            log.debug(f"the counters of the egress policy: {log.line_of(error)}")
        return self._refused

    def _prepare(self, path: str) -> None:
        thread = threading.current_thread()
        with self._lock:
            if thread not in self._waiting:
                return  # the container is gone, or the network
            try:
                if self._namespace < 0:
                    self._look(self._waiting[thread], path, scan=_scan_if_ready)
            except (BufferzoneError, OSError) as error:  # `attach` finds out whether it still is
                self._part()
                log.debug(f"a first look at the network: {log.line_of(error)}")
            finally:
                self._forget(thread)

    def _forget(self, thread: threading.Thread) -> None:
        os.close(self._waiting.pop(thread))

    def _look(
        self, fd: int, path: str, *, scan: Callable[[], tuple[Interface, ...]]
    ) -> tuple[Interface, ...]:
        """Take over what is in the namespace now; what that is. Raises what prevented some of it."""
        self._found = None
        found = namespace.inside(fd, scan)
        if self._namespace < 0 and (found or self._watch is not None):
            self._namespace, self._path = os.dup(fd), path
        if self._namespace < 0:
            return found
        seen = os.fstat(fd)
        try:
            self._nics.follow(fd, found, partial(self._record, [seen.st_dev, seen.st_ino], path))
        except (BufferzoneError, OSError):
            if self._started:  # the others are not to suffer
                self._configure_guest(tuple(i for i in found if i.name in self._nics.macs))
            raise
        self._configure_guest(found)
        self._found = found
        return found

    def _give_up(self, error: BufferzoneError | OSError) -> NoReturn:
        """Nobody can start: let go, unless somebody runs."""
        if not self._started:
            self._part()
        if isinstance(error, BufferzoneError):
            raise error
        raise HostError(f"the network: {error.strerror or error}", code="network") from error

    def _watch_and_scan(self) -> tuple[Interface, ...]:
        """What is in the namespace that this thread is in; what changes after this look will be told."""
        if self._watch is None:
            self._watch = watch.Watch()
        return _scan()

    def _follow(self) -> None:
        """Something may have changed in the namespace of a sandbox that runs."""
        with self._lock:
            if self._namespace < 0:
                return
            said = ""
            try:
                if namespace.inside(self._namespace, _scan) != self._found:
                    found = self._look(self._namespace, self._path, scan=_scan)
                    self._started = self._started or bool(found)
            except (BufferzoneError, OSError) as error:
                said = log.line_of(error) if isinstance(error, BufferzoneError) else str(error)
            if said and said != self._said:
                log.say(f"a change of the container's network was not followed: {said}")
            self._said = said

    def _part(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self._namespace < 0:
            return
        fd, self._namespace = self._namespace, -1
        self._started = False
        try:
            self._nics.part(fd)
        except (OSError, BufferzoneError) as error:
            if getattr(error, "errno", 0) in _GONE:
                log.debug(f"the network goes by itself: {log.line_of(error)}")
            else:
                log.say(f"traffic control stays in the container's network namespace: {log.line_of(error)}")
        finally:
            os.close(fd)

    def _configure_guest(self, found: tuple[Interface, ...]) -> None:
        """Have the guest take the interfaces over, unless it has; it finds plugged NICs at its own pace."""
        crossing = self._nics.crossing
        request = messages.SetNetworkRequest(
            interfaces=[
                _message(
                    nic.mac,
                    interface,
                    localnet=crossing.is_localnet(interface),
                    resolver=crossing.guest_address(interface, nic.number),
                )
                for nic, interface in self._nics.told(found)
            ]
        )
        if request == self._configured:
            return
        self._configured, end = None, time.monotonic() + _PLUG_S
        while True:
            try:
                self._agent.call("SetNetwork", request, Empty)
                self._configured = request
                self._recorder.note("network", interfaces=[_described(each) for each in found])
                return
            except GuestError as error:
                if error.code != "no-nic" or time.monotonic() > end:
                    raise
                select.select([], [], [], _AGAIN_S)


def _described(interface: Interface) -> str:
    """Name, MAC address and addresses, for a record."""
    addresses = [
        f"{socket.inet_ntop(_FAMILIES[len(each.local)], each.local)}/{each.prefix}"
        for each in interface.addresses
        if len(each.local) in _FAMILIES
    ]
    return " ".join([interface.name, interface.mac.hex(":"), *addresses])


def _scan() -> tuple[Interface, ...]:
    """What is in the namespace that this thread is in."""
    return interfaces.scan(messages.MOST_INTERFACES)


def _scan_if_ready() -> tuple[Interface, ...]:
    """The same; nothing while whoever makes it is not done."""
    found = _scan()
    return found if all(interface.is_ready for interface in found) else ()


def _message(nic_mac: str, interface: Interface, **crossing: Any) -> messages.Interface:
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
        **crossing,
    )
