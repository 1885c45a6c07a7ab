"""Which bytes of a file are locked, and how: ranges as values. Nothing here makes a system call.

A segment is (start, end, mode): `end` excluded, mode 1 shared, 2 exclusive. A list of them is in order and
does not overlap. Source: proc(5) "/proc/locks".
"""

from __future__ import annotations

import itertools

from bufferzone.linux.filelock import END
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, RANGE, SHARED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Segment = tuple[int, int, int]

_KINDS = {"FLOCK": FLOCK, "POSIX": RANGE, "OFDLCK": RANGE}


class Row:
    """One lock of the kernel's table: `kind`, segment, `pid` of the owner (-1: an open file description),
    and whether it `waits`.
    """

    __slots__ = ("kind", "pid", "segment", "waits")

    def __init__(self, kind: int, pid: int, segment: Segment, *, waits: bool) -> None:
        self.kind, self.pid, self.segment, self.waits = kind, pid, segment, waits


def rows_of(table: str, key: str) -> list[Row]:
    """The locks of the file `key`, `major:minor:inode` as the table spells it."""
    found = []
    for line in table.splitlines():
        fields = line.split()[1:]
        waits = bool(fields) and fields[0] == "->"
        fields = fields[waits:]
        if len(fields) < 7 or fields[4] != key or fields[0] not in _KINDS:
            continue
        start, last = int(fields[5]), fields[6]
        end = END if last == "EOF" else int(last) + 1
        mode = EXCLUSIVE if fields[2] == "WRITE" else SHARED
        found.append(Row(_KINDS[fields[0]], int(fields[3]), (start, end, mode), waits=waits))
    return found


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """Every byte with the strongest of its modes."""
    given = list(segments)
    edges = sorted({edge for start, end, _ in given for edge in (start, end)})
    made: list[Segment] = []
    for start, end in itertools.pairwise(edges):
        mode = max((m for s, e, m in given if s <= start and end <= e), default=0)
        if not mode:
            continue
        if made and made[-1][1] == start and made[-1][2] == mode:
            made[-1] = (made[-1][0], end, mode)
        else:
            made.append((start, end, mode))
    return made


def above(wanted: list[Segment], held: list[Segment]) -> list[Segment]:
    """Where `wanted` is more than `held`: what has to be asked for."""
    return [(start, end, want) for start, end, want, have in _beside(wanted, held) if want > have]


def below(target: list[Segment], held: list[Segment]) -> list[Segment]:
    """Where `target` is less than `held`: what is given back, down to the mode that stays."""
    return [(start, end, want) for start, end, want, have in _beside(target, held) if want < have]


def least(one: list[Segment], other: list[Segment]) -> list[Segment]:
    """Every byte with the weaker of its two modes."""
    return merge((start, end, min(a, b)) for start, end, a, b in _beside(one, other) if min(a, b))


def in_the_way(rows: Iterable[Row], segment: Segment, pid: int) -> bool:
    """Whether a range lock of somebody other than process `pid` forbids `segment`."""
    start, end, mode = segment
    for row in rows:
        first, last, other = row.segment
        conflicts = EXCLUSIVE in (mode, other) and first < end and start < last
        if row.kind == RANGE and not row.waits and row.pid != pid and conflicts:
            return True
    return False


def is_seen(rows: Iterable[Row], pid: int, segment: Segment) -> bool:
    """Whether the table has the range lock `segment` of process `pid`, or that it waits for it."""
    start, end, mode = segment
    return any(
        row.kind == RANGE
        and row.pid == pid
        and row.segment[0] <= start
        and end <= row.segment[1]
        and row.segment[2] == mode
        for row in rows
    )


def _beside(one: list[Segment], other: list[Segment]) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, mode in one, mode in other) from edge to edge."""
    edges = sorted({edge for start, end, _ in [*one, *other] for edge in (start, end)})
    for start, end in itertools.pairwise(edges):
        yield start, end, _at(one, start), _at(other, start)


def _at(segments: list[Segment], byte: int) -> int:
    return next((mode for start, end, mode in segments if start <= byte < end), 0)
