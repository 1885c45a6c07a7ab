"""What a restored container is given anew before it runs on. Its processes are frozen meanwhile."""

from __future__ import annotations

import _socket
import os

from bufferzone.linux import process as lp


def set_hostname(pid: int, name: str) -> None:
    """Set the hostname in the UTS namespace of `pid`, if that is not our own. Raises OSError."""
    ours = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            lp.setns(theirs, lp.CLONE_NEWUTS)
        finally:
            os.close(theirs)
        try:
            _socket.sethostname(name)
        finally:
            lp.setns(ours, lp.CLONE_NEWUTS)
    finally:
        os.close(ours)
