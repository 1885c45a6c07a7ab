"""Ends what a killed shim left behind, from `leftovers.json` alone. Trusts a pid only with its start time."""

from __future__ import annotations

import os
import select
import signal
from functools import partial

from bufferzone import state
from bufferzone.errors import BufferzoneError
from bufferzone.network import namespace, wire
from bufferzone.sandbox import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WAIT_MS = 5000
_OWNER_WAIT_MS = 3000


def clean(directory: str) -> list[str]:
    """Kill the recorded processes, wait for their end, remove the recorded cgroups.

    Returns what could not be removed, as text; the state directory itself stays for the caller.
    """
    _await_owner(directory)
    leftovers = state.read_leftovers(directory)
    left = []
    for pid, start in leftovers.get("processes", []):
        if not _kill(int(pid), int(start)):
            left.append(f"process {pid}")
    for path in leftovers.get("cgroups", []):
        try:
            cgroups.remove(path)
        except OSError as error:
            left.append(f"cgroup {path}: {error.strerror}")
    for network in leftovers.get("networks", []):
        try:
            _part(network)
        except (OSError, BufferzoneError) as error:
            left.append(f"taps in {network['path']}: {error}")
    return left


def _part(network: dict[str, Any]) -> None:
    """Take taps and traffic control from a namespace, if it is still the one that had them."""
    try:
        fd = namespace.open_path(network["path"])
    except OSError:
        return  # it is gone, and all of it
    try:
        found = os.fstat(fd)
        if [found.st_dev, found.st_ino] == network["identity"]:
            namespace.inside(fd, partial(wire.clear, network.get("taps", ())))
    finally:
        os.close(fd)


def _await_owner(directory: str) -> None:
    """A shim that is on its way out gives back more than we could; one that hangs is killed."""
    pid = state.owner_pid(directory)
    if not pid or pid == os.getpid():
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_OWNER_WAIT_MS):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.poll(_WAIT_MS)
    except ProcessLookupError:
        pass  # it ended
    finally:
        os.close(pidfd)


def _kill(pid: int, start: int) -> bool:
    """Whether the process is gone afterwards."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not state.process_alive(pid, start):
            return True
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(_WAIT_MS))
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
