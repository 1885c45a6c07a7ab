"""Loading a kernel module by name, with the modules it needs. Runs in the VM only."""

from __future__ import annotations

import os

from bufferzone.container.loop import warn

_MODPROBE = "/sbin/modprobe"
#: not there where a kernel has no modules: then all that it has is built in
_LOADED = "/proc/modules"


def begin(name: str) -> int:
    """Start loading a module with what it needs, unless it is there; the pid, which PID 1 reaps, or 0."""
    if os.path.isdir(f"/sys/module/{name}") or not os.path.exists(_LOADED):
        return 0
    try:
        return os.posix_spawn(_MODPROBE, [_MODPROBE, name], {})
    except OSError as error:
        warn(f"{_MODPROBE}: {error.strerror}")
        return 0


def modprobe(name: str) -> None:
    """The same, and wait for its end; what cannot be loaded is warned of."""
    pid = begin(name)
    if not pid:
        return
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # reaped by the signal handler
