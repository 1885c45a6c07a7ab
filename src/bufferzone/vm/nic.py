"""The back end of the NIC that every VM has from the start: a tap that waits in a namespace of its own."""

from __future__ import annotations

import os
import socket

from bufferzone.errors import HostError
from bufferzone.network import tcfilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from bufferzone.vm.shape import VmShape


def has_taps() -> bool:
    """Whether we may make tap devices at all: whether a VM of ours has a NIC."""
    return os.access(tcfilter.DEVICE, os.R_OK | os.W_OK)


def park(log: Callable[[str], None]) -> tcfilter.Tap | None:
    """The tap of the VM's NIC; without one the VM has none, which only a container with a network misses."""
    try:
        return tcfilter.park()
    except HostError as error:
        log(f"the VM gets no NIC: {error.line()}")
        return None


def idle(stack: ExitStack, shape: VmShape) -> int:
    """A back end with nobody behind it, for a VM that becomes a template: a descriptor, -1: no NIC."""
    if shape.user_network:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        stack.callback(theirs.close)
        return theirs.fileno()
    if not shape.nic:
        return -1
    tap = tcfilter.park()
    stack.callback(os.close, tap.fd)
    os.close(tap.namespace_fd)
    return tap.fd
