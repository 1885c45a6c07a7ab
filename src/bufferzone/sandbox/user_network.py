"""The user network of one sandbox: passt in place of a tap, where the host's network was asked for.

The guest gets a fixed address; nothing of the host is configured, so it needs no right there.
"""

from __future__ import annotations

import os
import socket

from bufferzone import egress
from bufferzone.errors import HostError
from bufferzone.network import frame_filter, passt
from bufferzone.oci import host, ports
from bufferzone.sandbox.network import Network
from bufferzone.vmm import console
from bufferzone.wire import network as messages
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.network.tcfilter import Tap
    from bufferzone.snapshot.checkpoint_dir import Saved
    from bufferzone.spawn import Child
    from bufferzone.vm.agent_client import AgentClient
    from bufferzone.vmm.interface import Vmm

_NAME = "eth0"
_BOOT, _UNICAST, _LINK_SCOPE = 3, 1, 253  # RTPROT_BOOT, RTN_UNICAST, RT_SCOPE_LINK
#: passt complains about a missing system log at each line
_NOISE = ("Failed to send", "Warning")


def wanted(spec: dict[str, Any], settings: Settings, restored: Saved | None) -> bool:
    """Whether this sandbox gets one. Raises `HostError` for a checkpoint of one that had passt."""
    if restored is not None:
        if restored.machine.user_network:
            raise HostError("a checkpoint of a VM behind passt cannot be restored", code="passt")
        return False
    return settings.host_network == "passt" and host.asks_for_host_network(spec)


class Link:
    """passt, and `fd`, the VMM's end of the connection to it, behind a frame filter. `note` gets passt's pid;
    `stack` gives all back.
    """

    def __init__(
        self, stack: ExitStack, settings: Settings, directory: str, uid: int, note: Callable[[int], None]
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
        self.frame_filter = frame_filter.FrameFilter(to_guest, to_passt, passt.ADDRESS)
        stack.callback(self.frame_filter.close)
        note(self.child.pid)

    def handed_over(self) -> None:
        """The VMM has its copy: its end is to be seen here."""
        self._socket.close()


def of(
    stack: ExitStack,
    link: Link | Tap | None,
    vmm: Vmm,
    agent_client: AgentClient,
    record: Callable[[list[int], str, list[str]], None],
    allowed: list[str],
) -> Network:
    """The network behind this back end of the VM's NIC; `stack` closes it. `allowed` is the
    egress policy, which passt does not know."""
    if isinstance(link, Link):
        network: Network = UserNetwork(link, vmm, agent_client)
    else:
        network = Network(link, vmm, agent_client, record, egress.policy(allowed))
    stack.callback(network.close)
    return network


class UserNetwork(Network):
    """In place of taps that are joined with a namespace."""

    def __init__(self, link: Link, vmm: Vmm, agent_client: AgentClient) -> None:
        super().__init__(None, vmm, agent_client, lambda *_: None, None)
        self._link, self._client = link, agent_client
        self._begun = self._reading = False
        link.handed_over()

    @property
    def is_joined(self) -> bool:
        """Whether there is a network."""
        return True

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
        self._client.call("Network", messages.NetworkRequest(interfaces=[interface()]), Empty)
        self._begun = True


def check(child: Child, log: console.Reader) -> None:
    """Raise `HostError` with passt's own words when it has ended: a port that is taken, no route."""
    status = child.wait_exit(0)
    if status is None:
        return
    log.join()
    said = [line for line in log.log.tail(50) if line and not line.startswith(_NOISE)]
    reason = f": {said[-1]}" if said else ""
    raise HostError(f"passt ended with status {status}{reason}", code="passt")


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
