"""`events`: resource usage of a container in runc's JSON, once or at an interval, and a line for every
out-of-memory kill.
"""

from __future__ import annotations

import os
import time

from bufferzone import jsontext, state
from bufferzone.cli import durations, output
from bufferzone.cli.flags import Flag
from bufferzone.client import container
from bufferzone.errors import BufferzoneError
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


def run(options: Options, words: list[str]) -> int:
    """Print one line, or a line per interval until the container stops."""
    interval_s = durations.seconds(options.interval)
    directory = container.find(options.root, words[0])
    if state.status(directory) == state.STOPPED:
        raise container.refusal("events", words[0], state.STOPPED)
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


def _print_stats(directory: str, id: str) -> None:
    answer = container.ask(directory, "Stats", task.StatsRequest(id=id), "events")
    numbers = metrics.Metrics.decode(answer.stats.value if answer.stats else b"")
    line = {"type": "stats", "id": id, "data": metrics.to_events(numbers)}
    output.print_text(jsontext.dumps(line) + "\n")
