"""Who called the verb that started this shim, and whether that is who waits for its end now.

conmon is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), so that a shim whose verb has ended is its child.
Newer versions do not end before all their children have, and systemd does not call a service stopped before
conmon has ended. Podman deletes a container as soon as that has stopped, as a rule; not while systemd stops
the service that it was started from.
"""

from __future__ import annotations

import os

#: the verb's caller, and who called that: there may be a program between
_GENERATIONS = 2


class Callers:
    """Made while the verb that started this process waits for it."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        pid = os.getppid()
        for _ in range(_GENERATIONS):
            pid = _parent(pid)
            self._pids.append(pid)

    def wait_for_us(self) -> bool:
        """Whether one of them is our parent now, and not because it is everybody's."""
        return os.getppid() in self._pids and os.getppid() > 1


def _parent(pid: int) -> int:
    """0: it has none, or has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0
