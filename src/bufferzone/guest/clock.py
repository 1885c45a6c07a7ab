"""The wall clock, set by its distance from the monotonic one. Runs in the VM only."""

from __future__ import annotations

import time

#: a CPU that is taken away between reading the one clock and setting the other makes the other late
_LATE_NS, _ROUNDS = 2_000_000, 20


def set_wall_clock(offset_ns: int) -> None:
    """Make CLOCK_REALTIME what CLOCK_MONOTONIC is plus `offset_ns`. Raises OSError."""
    for _ in range(_ROUNDS):
        began = time.monotonic_ns()
        time.clock_settime_ns(time.CLOCK_REALTIME, began + offset_ns)
        if time.monotonic_ns() - began < _LATE_NS:
            return
