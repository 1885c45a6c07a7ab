"""`bz kill`: send a signal to the first process of containers."""

from __future__ import annotations

from functools import partial

from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.client import signals
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
    request = partial(task.KillRequest, signal=number)
    for name, _ in chosen.answers(options.root, words, "Kill", request, "kill"):
        output.print_text(f"{name}\n")
    return 0
