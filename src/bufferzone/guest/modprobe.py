"""Loading a kernel module by name, with the modules it needs. Runs in the VM only."""

from __future__ import annotations

import os

from bufferzone.guest.loop import warn

_MODPROBE = "/sbin/modprobe"


def modprobe(name: str) -> None:
    """Load a module with what it needs, and wait for that; what cannot be loaded is warned of."""
    try:
        pid = os.posix_spawn(_MODPROBE, [_MODPROBE, name], {})
    except OSError as error:
        warn(f"{_MODPROBE}: {error.strerror}")
        return
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # reaped by the signal handler
