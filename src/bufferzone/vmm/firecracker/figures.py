"""What Firecracker's exit status and its metrics tell of an end. Pure; the metrics are a guest's, so hostile.

Source: Firecracker 1.12, src/vmm/src/lib.rs (FcExitCode) and src/vmm/src/logger/metrics.rs.
"""

from __future__ import annotations

import json
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: it catches signals, writes its metrics, and ends with one of these
_SIGNALS = {
    148: signal.SIGSYS,
    149: signal.SIGBUS,
    150: signal.SIGSEGV,
    151: signal.SIGXFSZ,
    154: signal.SIGXCPU,
    155: signal.SIGPIPE,
    156: signal.SIGHUP,
    157: signal.SIGILL,
}
#: a line of metrics has 12 KB, more with each device
MOST_LINE = 64 << 10


def signal_of(status: int | None) -> int | None:
    """The status as if the signal that it caught had ended it."""
    return status if status is None or status not in _SIGNALS else -_SIGNALS[status]


def last(lines: Sequence[str]) -> Mapping[str, Any]:
    """The metrics in the last of these lines; empty where that is none."""
    try:
        found = json.loads(lines[-1]) if lines else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def was_reset(metrics: Mapping[str, Any]) -> bool:
    """Whether the guest reset its machine, through the keyboard controller: it has no other way to end."""
    row = metrics.get("i8042")
    return isinstance(row, dict) and row.get("reset_count", 0) not in (0, False, None)
