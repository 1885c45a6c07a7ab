"""`bz wait`: wait for the end of containers; the exit status of each is printed."""

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
    """Wait."""
    for _, answer in chosen.answers(options.root, words, "Wait", task.WaitRequest, "wait for"):
        output.print_text(f"{answer.exit_status}\n")
    return 0
