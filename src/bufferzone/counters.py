"""What this user has started and what failed since the machine came up, for `bz metrics`.

The file `counters` in `state.lease_root` has a line for each series, its fields separated by tabs: `start`
with its kind, phase, number, milliseconds in all and the number in each bucket (not those below); `failure`
with its cause and number. A shim adds to it when its sandbox is up, and nobody waits for that, or has failed.
It is written in place under a lock: a line that is none, since the machine went down meanwhile, is left out.
"""

from __future__ import annotations

import fcntl
import os

from bufferzone.log import passing_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAME = "counters"
#: upper bounds of the buckets in milliseconds; one more has what is above
BOUNDS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 120000)
WHOLE = "all"
_START, _FAILURE = "start", "failure"
#: labels are ours, and few; this many lines are more than there can be
_MOST = 500

#: labels -> number, sum of milliseconds, numbers of the buckets; the last two are 0 and empty for a failure
Series = dict[tuple[str, ...], tuple[int, float, list[int]]]


def count_start(directory: str, kind: str, marks: Sequence[tuple[str, float]]) -> None:
    """A sandbox came up, `kind` is cold, warm and so on; `marks` are its phases with their ends in ms.

    Never raises.
    """
    spans, before = [], 0.0
    for phase, end in marks:
        spans.append((phase, end - before))
        before = end
    _add(directory, [((_START, kind, phase), span) for phase, span in [*spans, (WHOLE, before)]])


def count_failure(directory: str, cause: str) -> None:
    """A sandbox failed; `cause` is the error's code. Never raises."""
    _add(directory, [((_FAILURE, cause), None)])


def read(directory: str) -> Series:
    """What is there; nothing where nothing was counted. Raises OSError."""
    try:
        fd = os.open(os.path.join(directory, NAME), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return {}
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        return _parse(_content(fd))
    finally:
        os.close(fd)


def starts(series: Series) -> Iterable[tuple[str, str, int, float, list[int]]]:
    """(kind, phase, number, milliseconds, buckets) of each that is one of starts."""
    for labels, (number, total, buckets) in sorted(series.items()):
        if labels[0] == _START:
            yield labels[1], labels[2], number, total, buckets


def failures(series: Series) -> Iterable[tuple[str, int]]:
    """(cause, number)."""
    for labels, (number, _, _) in sorted(series.items()):
        if labels[0] == _FAILURE:
            yield labels[1], number


def _add(directory: str, observed: Sequence[tuple[tuple[str, ...], float | None]]) -> None:
    with passing_over("count a start for bz metrics", OSError):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(os.path.join(directory, NAME), flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            series = _parse(_content(fd))
            for labels, span in observed:
                if labels in series or len(series) < _MOST:
                    series[labels] = _with(series.get(labels), span)
            data = _text(series).encode()
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)


def _with(found: tuple[int, float, list[int]] | None, span: float | None) -> tuple[int, float, list[int]]:
    number, total, buckets = found or (0, 0.0, [] if span is None else [0] * (len(BOUNDS_MS) + 1))
    if span is not None:
        buckets[sum(span > bound for bound in BOUNDS_MS)] += 1
    return number + 1, total + (span or 0.0), buckets


def _content(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")


def _text(series: Series) -> str:
    lines = []
    for labels, (number, total, buckets) in series.items():
        fields = [*labels, str(number)]
        if buckets:
            fields += [f"{total:.1f}", *map(str, buckets)]
        lines.append("\t".join(fields) + "\n")
    return "".join(lines)


def _parse(text: str) -> Series:
    found: Series = {}
    for line in text.splitlines():
        fields = line.split("\t")
        try:
            if fields[0] == _FAILURE:
                _, cause, number = fields
                found[_FAILURE, cause] = int(number), 0.0, []
            else:
                _, kind, phase, number, total, *buckets = fields
                if fields[0] == _START and len(buckets) == len(BOUNDS_MS) + 1:
                    found[_START, kind, phase] = int(number), float(total), [int(text) for text in buckets]
        except ValueError:
            continue  # half a line
    return found
