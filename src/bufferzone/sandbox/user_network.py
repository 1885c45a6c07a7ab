"""The user network of one sandbox: passt in place of a tap, where the settings say so.

The guest gets a fixed address; nothing of the host is configured, so it needs no right there.
"""

from __future__ import annotations

import os
import socket

from bufferzone import egress
from bufferzone.errors import HostError
from bufferzone.network import frame_filter, passt, passt_policy, ruleset
from bufferzone.oci import host, ports
from bufferzone.vmm import console, drivers
from bufferzone.wire import network as messages
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager, ExitStack
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.sandbox.network import TapNetwork
    from bufferzone.spawn import Child
    from bufferzone.vm.agent_client import AgentClient

_NAME = "eth0"
_BOOT, _UNICAST, _LINK_SCOPE = 3, 1, 253  # RTPROT_BOOT, RTN_UNICAST, RT_SCOPE_LINK
#: passt complains about a missing system log at each line
_NOISE = ("Failed to send", "Warning")


def is_wanted(spec: dict[str, Any], settings: Settings) -> bool:
    """Whether a new sandbox gets one. Raises `HostError` where its VMM has no network."""
    if settings.host_network != "passt" or not host.asks_for_host_network(spec):
        return False
    features = drivers.find(settings.vmm).FEATURES
    if not features.stream_nic:
        hint = "" if not features.nic else "host_network = none, or a network of its own"
        raise HostError(f"{features.label} has no network for passt", hint=hint, code="vmm-feature")
    return True


class Link:
    """passt, and `fd`, the VMM's end of the connection to it, behind a frame filter. `record` gets its pid;
    `stack` gives all back.
    """

    def __init__(
        self, stack: ExitStack, settings: Settings, directory: str, uid: int, record: Callable[[int], None]
    ) -> None:
        read_end, log_fd = os.pipe2(os.O_CLOEXEC)
        self.log = console.Reader("passt", read_end, console.BoundedLog(-1))
        try:
            wishes = [ports.parse(text) for text in settings.publish]
            empty = os.path.join(directory, "empty")
            os.makedirs(empty, exist_ok=True)
            self.child, to_passt = passt.start(wishes, directory=empty, uid=uid, log_fd=log_fd)
        finally:
            os.close(log_fd)
        stack.enter_context(self.child)
        self._socket, to_guest = frame_filter.pair()
        self.fd = self._socket.fileno()
        stack.callback(self._socket.close)
        rules = egress.policy(settings.egress)
        policy = None if rules is None else passt_policy.Policy(rules)
        self.frame_filter = frame_filter.FrameFilter(to_guest, to_passt, passt.ADDRESS, policy, passt.GATEWAY)
        stack.callback(self.frame_filter.close)
        record(self.child.pid)

    def handed_over(self) -> None:
        """The VMM has its copy: its end is to be seen here."""
        self._socket.close()


class UserNetwork:
    """A network behind passt, see `networks.Network`. `namespaces` refuses what containers have in theirs."""

    def __init__(self, link: Link, agent_client: AgentClient, namespaces: TapNetwork) -> None:
        self._link, self._client, self._namespaces = link, agent_client, namespaces
        self._begun = self._reading = False
        link.handed_over()

    @property
    def is_joined(self) -> bool:
        """Whether there is a network."""
        return True

    @property
    def helpers(self) -> tuple[tuple[str, int], ...]:
        """passt."""
        return (("passt", self._link.child.pid),)

    @property
    def not_saveable(self) -> str:
        """Why a VM with this network cannot be saved."""
        return "it is behind passt, whose connections cannot be saved"

    def begin(self) -> None:
        """Have the guest configure its NIC; raises `HostError` when passt is not there any more."""
        if self._begun:
            return
        if not self._reading:
            self._reading = True
            self._link.log.start()
            self._link.frame_filter.start()
        check(self._link.child, self._link.log)
        self._client.call("SetNetwork", messages.SetNetworkRequest(interfaces=[interface()]), Empty)
        self._begun = True

    def share_localhost(self) -> None:
        """Nothing: nobody calls from within a namespace."""

    def prepare(self, fd: int, path: str) -> None:
        """Look into a namespace that a container has all the same."""
        self._namespaces.prepare(fd, path)

    def attach(self, fd: int, path: str) -> None:
        """Refuse what is in that namespace: raises `HostError` for an interface."""
        self._namespaces.attach(fd, path)

    def leave(self, fd: int) -> None:
        """The container of that namespace is gone."""
        self._namespaces.leave(fd)

    def withdrawn(self) -> AbstractContextManager[None]:
        """Not asked for: such a VM cannot be saved."""
        return self._namespaces.withdrawn()

    def refused(self) -> dict[str, int]:
        """What the frame filter let not pass."""
        held = self._link.frame_filter
        if held.policy is None:
            return {}
        return {ruleset.DENIED: held.policy.denied, ruleset.FORGED: held.forged}

    def close(self) -> None:
        """Nothing of passt's, which goes with its exit stack."""
        self._namespaces.close()


def check(child: Child, log: console.Reader) -> None:
    """Raise `HostError` with passt's own words when it has ended: a port that is taken, no route."""
    status = child.wait_exit(0)
    if status is None:
        return
    log.join()
    said = [line for line in log.log.tail(50) if line and not line.startswith(_NOISE)]
    reason = f": {said[-1]}" if said else ""
    raise HostError(f"passt ended with status {status}{reason}", hint=child.denied, code="passt")


def interface() -> messages.Interface:
    """The guest's one interface: address, the link's route, and the default route."""
    local, gateway = socket.inet_aton(passt.ADDRESS), socket.inet_aton(passt.GATEWAY)
    network = socket.inet_aton("10.0.2.0")
    common = {"family": int(socket.AF_INET), "type": _UNICAST, "protocol": _BOOT}
    mac = bytes.fromhex(messages.FIRST_MAC.replace(":", ""))
    return messages.Interface(
        nic=messages.FIRST_MAC,
        name=_NAME,
        mac=mac,
        mtu=passt.MTU,
        up=True,
        announce=True,
        addresses=[messages.Address(local=local, prefix=passt.PREFIX)],
        routes=[
            messages.Route(
                **common, destination=network, prefix=passt.PREFIX, source=local, scope=_LINK_SCOPE
            ),
            messages.Route(**common, gateway=gateway),
        ],
    )
