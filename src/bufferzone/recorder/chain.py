"""Reads the records and finds what was changed in them, without trusting a line before its hash."""

from __future__ import annotations

import json
import os

from bufferzone.digest import sha256
from bufferzone.errors import HostError
from bufferzone.record import Record
from bufferzone.recorder import journal
from bufferzone.recorder.journal import HEAD, NEWEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_TAIL = len('", "hash": "') - 1 + 64 + len('"}')
_MOST_LINE = 1 << 17


class Verified(Record):
    """What was found: `lines` read; `seq` and `hash` of the last; `fault`, empty where nothing is wrong."""

    lines: int
    seq: int
    hash: str
    fault: str


def files(directory: str) -> list[str]:
    """The files, oldest lines first; none where nothing was recorded. One that a writer who was killed was
    about to remove is none of them.
    """
    try:
        first = journal.read_head(directory).first
    except (OSError, ValueError):
        first = 0  # whoever verifies is told
    try:
        names = [f"records-{number}.jsonl" for number in journal.older(directory) if number >= first]
    except FileNotFoundError:
        return []
    return [path for name in (*names, NEWEST) if os.path.exists(path := os.path.join(directory, name))]


def lines(directory: str) -> Iterator[tuple[str, bytes]]:
    """`FILE:LINE` and the line, of all files. Raises `HostError` for one that cannot be read."""
    for path in files(directory):
        try:
            with open(path, "rb") as file:
                number = 0
                while line := file.readline(_MOST_LINE):
                    number += 1
                    yield f"{os.path.basename(path)}:{number}", line
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}", code="no-records") from error


def verify(directory: str, wanted: str = "") -> Verified:
    """Read all lines; the first fault ends it. `wanted`: a hash that has to be one of theirs."""
    count, seq, last = 0, 0, ""
    seen = not wanted

    def result(fault: str) -> Verified:
        return Verified(lines=count, seq=seq, hash=last, fault=fault)

    try:
        head = journal.read_head(directory)
    except (OSError, ValueError) as error:
        return result(f"{HEAD}: {error}")
    head_seen = not head.seq
    for where, line in lines(directory):
        fault, value = _fault(line, last, seq or head.first - 1)
        if fault:
            return result(f"{where}: {fault}")
        count, seq, last = count + 1, int(value["seq"]), str(value["hash"])
        seen = seen or last == wanted
        head_seen = head_seen or (seq, last) == (head.seq, head.hash)
    if not head_seen:
        return result(
            f"{HEAD} says that line {head.seq} is the last, and it is not there: lines were cut off"
        )
    return result("" if seen else f"no line has the hash {wanted}: what was recorded by then is not here")


def _fault(line: bytes, before: str, seq: int) -> tuple[str, dict[str, Any]]:
    """What is wrong with the line that follows line `seq` with the hash `before` (empty: unknown)."""
    try:
        value = json.loads(line)
        told = {key: value[key] for key in ("seq", "prev", "hash")}
    except (ValueError, TypeError, KeyError):
        return "no record: it was cut or changed", {}
    body = line[: -_TAIL - 1] + b"}"
    if not line.endswith(b"\n") or sha256(body).hexdigest() != told["hash"]:
        return "it was changed: its hash is another", {}
    if told["seq"] != seq + 1:
        return f"line {seq + 1} is not here, but {told['seq']}: lines were left out or moved", {}
    if before and told["prev"] != before:
        return "the line before it is another than when it was written", {}
    return "", value
