"""`bz stats`: what containers use now, by the counters of their kernels."""

from __future__ import annotations

import json
import os
import select

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
DESCRIPTION = "Without a name: of all that run. CPU is the time used so far; what the guest cannot tell is -."
WORDS = (0, -1)
INTERSPERSED = True

_EVERY_MS = 2000
_HOME = "\x1b[H\x1b[J"


def run(options: Options, words: list[str]) -> int:
    """Print them, on a terminal again and again."""
    if options.json:
        forms = [{"id": id, **_fields(stats)} for id, stats in _all(options, words)]
        output.print_text(json.dumps(forms, indent=2) + "\n")
        return 0
    if options.no_stream or not os.isatty(1):
        output.print_table(_rows(_all(options, words)))
        return 0
    while True:
        output.print_text(_HOME)
        output.print_table(_rows(_all(options, words)))
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


def _fields(stats: Stats) -> dict[str, Any]:
    return {name: getattr(stats, name) for name in ("cpu_s", "memory_mib", "peak_memory_mib", "processes")}


def _rows(found: list[tuple[str, Stats]]) -> list[list[str]]:
    rows = [["ID", "CPU S", "MEMORY MIB", "PEAK MIB", "PROCESSES"]]
    for id, stats in found:
        row = [id]
        for value in _fields(stats).values():
            row.append("-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value))
        rows.append(row)
    return rows
