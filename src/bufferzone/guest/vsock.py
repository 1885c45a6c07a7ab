"""The agent's channel where the VMM has no ports: a connection to the host over a vsock. Runs in the VM only.

The guest calls, when it is ready: so the host need not ask again and again. A VM that was restored has lost
its connection (Firecracker tells the driver, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET) and calls once more. The
VMM's driver says in the kernel's command line that this is the way. Source: vsock(7), virtio 1.2, 5.10.
"""

from __future__ import annotations

import _socket
import errno

from bufferzone.container.kernel_files import read
from bufferzone.errors import GuestError
from bufferzone.guest.modprobe import modprobe
from bufferzone.wire.agent import CHANNEL_IS_VSOCK, VSOCK_PORT

_HOST = 2  # VMADDR_CID_HOST
#: its bus, where each device is told of by ACPI, and the driver
_MODULES = ("virtio_mmio", "vmw_vsock_virtio_transport")
_NONE = (errno.EAFNOSUPPORT, errno.ENODEV)


def is_chosen() -> bool:
    """Whether the VMM's driver wants the agent to call."""
    return CHANNEL_IS_VSOCK in read("/proc/cmdline").split()


def load() -> None:
    """Load what it takes, where that is no part of the kernel."""
    for name in _MODULES:
        modprobe(name)


def connect() -> int:
    """Call the host: a connected stream socket. Raises `GuestError`, OSError."""
    try:
        channel = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        channel.connect((_HOST, VSOCK_PORT))
    except OSError as error:
        if error.errno in _NONE:
            raise GuestError("this kernel has no vsock (VIRTIO_VSOCKETS)", code="no-vsock") from error
        raise
    return channel.detach()
