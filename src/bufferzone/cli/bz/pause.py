"""`bz pause`: suspend all processes of containers."""

from __future__ import annotations

from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "NAME..."
DESCRIPTION = ""
WORDS = (1, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Do what the verb says; the names are printed."""
    for name, _ in chosen.answers(options.root, words, "Pause", task.PauseRequest, "pause"):
        output.print_text(f"{name}\n")
    return 0
