"""`ps`: the processes of a container. The table is the guest's own view; JSON lists pids of this host."""

from __future__ import annotations

import os
import time

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.client import container
from bufferzone.errors import UsageError
from bufferzone.log import shown
from bufferzone.wire import agent, shim, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.cli.flags import Options

FLAGS = (Flag("format f", "table|json", "table or json", default="table"),)
USAGE = "[options] <container-id> [ps options]"
DESCRIPTION = """The table shows the processes in the VM, with the pids of the guest.
JSON lists the host pids that stand for the container and its execs: callers look those up in /proc."""
WORDS = (1, -1)
INTERSPERSED = False

#: columns of the table: those of `ps -ef`, and what `ps x` has beside them; procps ps(1)
HEADER: tuple[str, ...] = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD", "STAT", "COMMAND")
_FULL, _BSD = [0, 1, 2, 3, 4, 5, 6, 7], [1, 5, 8, 6, 9]
_PID, _PID_WIDTH = 1, 7
#: names after -o -> the column
_COLUMNS = {
    "uid": 0,
    "user": 0,
    "pid": 1,
    "ppid": 2,
    "c": 3,
    "stime": 4,
    "start": 4,
    "tty": 5,
    "tt": 5,
    "time": 6,
    "cputime": 6,
    "cmd": 7,
    "args": 7,
    "command": 7,
    "stat": 8,
}
#: options without a value: all processes of the container are shown, in one form
_SELECTING = frozenset("AaefFlxujTwH")


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    if options.format not in ("table", "json"):
        raise UsageError(f"invalid format: {shown(options.format)}", hint="table or json")
    columns = columns_of(words[1:])
    directory = container.find(options.root, words[0])
    stopped = state.status(directory) == state.STOPPED
    if options.format == "json":
        text = "null" if stopped else f"[{','.join(map(str, _pids(directory)))}]"  # null: runc's, a nil slice
        os.write(1, f"{text}\n".encode())
        return 0
    rows = [HEADER]
    if not stopped:
        ref = agent.ProcessRef(id=words[0])
        found = container.ask(directory, "Processes", ref, "ps", service=shim.SERVICE)
        rows += [row(process) for process in found.processes]
    print_columns(rows, columns)
    return 0


def print_columns(rows: Sequence[tuple[str, ...]], columns: list[int]) -> None:
    """These columns of the rows; pids that come first are to the right, as ps has them."""
    chosen = [[row[column] for column in columns] for row in rows]
    if columns[0] == _PID:
        chosen = [[first.rjust(_PID_WIDTH), *rest] for first, *rest in chosen]
    output.print_table(chosen)


def _pids(directory: str) -> list[int]:
    request = task.PidsRequest(id=os.path.basename(directory))
    return [entry.pid for entry in container.ask(directory, "Pids", request, "ps").processes]


def columns_of(words: Sequence[str]) -> list[int]:
    """Which columns ps options ask for: `-o NAMES` chooses, what selects processes has nothing to choose
    from.

    Raises `UsageError` for an option that is none of ps's, or a column that the guest does not tell.
    Source: ps(1), procps and busybox.
    """
    rest, names = list(words), []
    selecting = ""
    while rest:
        word = rest.pop(0)
        if word != "-" and set(word.removeprefix("-")) <= _SELECTING:
            selecting += word
            continue
        letters, o, value = word.removeprefix("-").partition("o")
        if not o or not set(letters) <= _SELECTING:
            raise UsageError(f"ps has no such option here: {shown(word)}", hint="-o NAMES, -e, -f, a, x, u")
        if not value and not rest:
            raise UsageError(f"flag needs an argument: {shown(word)}")
        names += (value or rest.pop(0)).split(",")
    for name in names:
        if name not in _COLUMNS:
            raise UsageError(f"ps: the guest does not tell: {shown(name)}", hint=", ".join(_COLUMNS))
    bsd = "x" in selecting and not {"f", "F"} & set(selecting)
    return [_COLUMNS[name] for name in names] or (_BSD if bsd else _FULL)


def row(process: agent.ProcessInfo) -> tuple[str, ...]:
    """One process as the table has it."""
    seconds = process.cpu_ms // 1000
    lived_s = max(1, int(time.time()) - process.start_s)
    return (
        str(process.uid) if process.uid else "root",  # other names are the container's to give
        str(process.pid),
        str(process.ppid),
        str(min(99, process.cpu_ms // 10 // lived_s)),
        _start(process.start_s),
        process.tty or "?",
        f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
        process.command,
        process.state[:1] or "?",
        process.command,
    )


def _start(seconds: int) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"  # the guest may say anything
