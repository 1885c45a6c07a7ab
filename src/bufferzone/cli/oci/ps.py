"""`ps`: the processes of a container. The table is the guest's own view; JSON lists pids of this host."""

from __future__ import annotations

import os
import time

from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.client import container
from bufferzone.errors import UsageError
from bufferzone.log import shown
from bufferzone.wire import agent, shim, task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("format f", "table|json", "table or json", default="table"),)
USAGE = "[options] <container-id> [ps options]"
DESCRIPTION = """The table shows the processes in the VM, with the pids of the guest.
JSON lists the host pids that stand for the container and its execs: callers look those up in /proc."""
WORDS = (1, -1)
INTERSPERSED = False


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    if options.format not in ("table", "json"):
        raise UsageError(f"invalid format: {shown(options.format)}", hint="table or json")
    directory = container.find(options.root, words[0])
    if options.format == "json":
        pids = container.ask(directory, "Pids", task.PidsRequest(id=words[0]), "ps")
        os.write(1, f"[{','.join(str(entry.pid) for entry in pids.processes)}]\n".encode())
        return 0
    ref = agent.ProcessRef(id=words[0])
    found = container.ask(directory, "Processes", ref, "ps", service=shim.SERVICE)
    rows: list[tuple[str, ...]] = [("UID", "PID", "PPID", "START", "TTY", "TIME", "CMD")]
    rows += [_row(process) for process in found.processes]
    output.print_table(rows)
    return 0


def _row(process: agent.ProcessInfo) -> tuple[str, ...]:
    seconds = process.cpu_ms // 1000
    return (
        str(process.uid),
        str(process.pid),
        str(process.ppid),
        _start(process.start_s),
        process.tty or "?",
        f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
        process.command,
    )


def _start(seconds: int) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"  # the guest may say anything
