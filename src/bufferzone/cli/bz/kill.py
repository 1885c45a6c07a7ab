"""`bz kill`: send a signal to the first process of containers."""

from __future__ import annotations

import os

from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.client import container, signals
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("signal s", "NAME|NUMBER", "which one", default="KILL"),)
USAGE = "[options] NAME..."
DESCRIPTION = ""
WORDS = (1, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Send it; the names are printed."""
    number = signals.number_of(options.signal)
    for name in words:
        directory = chosen.directory(options.root, name)
        request = task.KillRequest(id=os.path.basename(directory), signal=number)
        container.ask(directory, "Kill", request, "kill")
        output.print_text(f"{name}\n")
    return 0
