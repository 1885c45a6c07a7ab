"""`bz stats`: what containers use now, by the counters of their kernels."""

from __future__ import annotations

import json
import os
import select
import time

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.bz import chosen, roots
from bufferzone.cli.flags import Flag
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options
    from bufferzone.library.values import Stats

FLAGS = (
    Flag("no-stream", "", "once, as in any case where stdout is no terminal"),
    Flag("json", "", "as JSON, once"),
)
USAGE = "[options] [NAME...]"
DESCRIPTION = (
    "Without a name: of all that run. CPU is the time used so far, and a part of one CPU at the moment;\n"
    "what the guest cannot tell is -."
)
WORDS = (0, -1)
INTERSPERSED = True

_EVERY_MS = 2000
_AT_ONCE_S = 0.5
_HOME = "\x1b[H\x1b[J"


def run(options: Options, words: list[str]) -> int:
    """Print them, on a terminal again and again."""
    used = _Used()
    found = _all(options, words)
    used.note(found)
    time.sleep(_AT_ONCE_S)
    if options.json:
        forms = [{"id": id, **used.fields(id, stats)} for id, stats in _all(options, words)]
        output.print_text(json.dumps(forms, indent=2) + "\n")
        return 0
    if options.no_stream or not os.isatty(1):
        output.print_table(_rows(_all(options, words), used))
        return 0
    while True:
        found = _all(options, words)
        output.print_text(_HOME)
        output.print_table(_rows(found, used))
        used.note(found)
        select.select([], [], [], _EVERY_MS / 1000)


def _all(options: Options, words: list[str]) -> list[tuple[str, Stats]]:
    if words:
        return [_one(options.root, name) for name in words]
    found = []
    for root, directory, known in list(roots.containers(options.root)):
        if known["status"] in (state.RUNNING, state.PAUSED):
            try:
                found.append(_one(root, os.path.basename(directory)))
            except BufferzoneError:
                continue  # it has ended meanwhile
    return found


def _one(root: str, name: str) -> tuple[str, Stats]:
    with chosen.sandbox(root, name) as sandbox:
        return sandbox.name, sandbox.stats()


class _Used:
    """The CPU time that each had used when it was last noted, and when that was."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def note(self, found: list[tuple[str, Stats]]) -> None:
        """Remember it."""
        now = time.monotonic()
        self._before = {id: (now, stats.cpu_s) for id, stats in found if stats.cpu_s is not None}

    def fields(self, id: str, stats: Stats) -> dict[str, Any]:
        """What is told of one."""
        percent = None
        if id in self._before and stats.cpu_s is not None:
            at, used_s = self._before[id]
            percent = round(100 * max(0.0, stats.cpu_s - used_s) / (time.monotonic() - at), 1)
        names = ("memory_mib", "peak_memory_mib", "processes")
        return {
            "cpu_percent": percent,
            "cpu_s": stats.cpu_s,
            **{name: getattr(stats, name) for name in names},
        }


def _rows(found: list[tuple[str, Stats]], used: _Used) -> list[list[str]]:
    rows = [["ID", "CPU %", "CPU S", "MEMORY MIB", "PEAK MIB", "PROCESSES"]]
    for id, stats in found:
        row = [id]
        for value in used.fields(id, stats).values():
            row.append("-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value))
        rows.append(row)
    return rows
