"""`events`: resource usage of a container in runc's JSON, once or at an interval, and a line for every
out-of-memory kill.
"""

from __future__ import annotations

import os
import time

from bufferzone import jsontext, state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.client import container
from bufferzone.errors import BufferzoneError, UsageError
from bufferzone.log import shown
from bufferzone.wire import metrics, shim, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("interval", "TIME", "time between two lines, like 500ms, 5s or 1m30s", default="5s"),
    Flag("stats", "", "print one line and exit"),
)
USAGE = "[options] <container-id>"
DESCRIPTION = "The numbers are those of the container's cgroup in the guest; the VM itself is not in them."
WORDS = (1, 1)
INTERSPERSED = True

_MOST_LINES = 10
_ASK_S = 5.0  # the shim is asked again after this: a killed `events` holds nothing there for longer
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def run(options: Options, words: list[str]) -> int:
    """Print one line, or a line per interval until the container stops."""
    interval_s = duration_s(options.interval)
    directory = container.find(options.root, words[0])
    if options.stats:
        _print_stats(directory, words[0])
        return 0
    known = _kills(directory, words[0], 0, 0).count
    _print_stats(directory, words[0])
    while True:
        try:
            known, ended = _print_kills(directory, words[0], known, time.monotonic() + interval_s)
            if ended:
                return 0
            _print_stats(directory, words[0])
        except BufferzoneError:
            if os.path.isdir(directory) and state.status(directory) != state.STOPPED:
                raise
            return 0


def _print_kills(directory: str, id: str, known: int, end: float) -> tuple[int, bool]:
    """A line per kill beyond the `known` ones until `end`; (how many there are, whether the container
    ended).
    """
    while (left := end - time.monotonic()) > 0:
        answer = _kills(directory, id, known, min(left, _ASK_S))
        for _ in range(min(answer.count - known, _MOST_LINES)):
            output.print_text(jsontext.dumps({"type": "oom", "id": id}) + "\n")
        known = answer.count
        if answer.ended:
            return known, True
    return known, False


def _kills(directory: str, id: str, seen: int, timeout_s: float) -> shim.OomResponse:
    request = shim.OomRequest(id=id, seen=seen, timeout_ms=int(timeout_s * 1000))
    answer: shim.OomResponse = container.ask(directory, "WaitOom", request, "events", service=shim.SERVICE)
    return answer


def duration_s(text: str) -> float:
    """A duration as Go writes it; raises `UsageError` unless it is positive."""
    total, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("hmsun"))]
        rest = rest[len(unit) :]
        if unit not in _UNITS or not number.strip(".") or number.count(".") > 1 or len(number) > 18:
            raise UsageError(f"invalid duration: {shown(text)}", hint="like 500ms, 5s or 1m30s")
        total += float(number) * _UNITS[unit]
    if not 0 < total < 1e9:
        raise UsageError(f"duration interval must be greater than 0: {shown(text)}")
    return total


def _print_stats(directory: str, id: str) -> None:
    answer = container.ask(directory, "Stats", task.StatsRequest(id=id), "events")
    numbers = metrics.Metrics.decode(answer.stats.value if answer.stats else b"")
    line = {"type": "stats", "id": id, "data": metrics.to_events(numbers)}
    output.print_text(jsontext.dumps(line) + "\n")
