"""`start`: run the process of a created container."""

from __future__ import annotations

from bufferzone.client import container
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "<container-id>"
DESCRIPTION = ""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Start it."""
    container.ask(container.find(options.root, words[0]), "Start", task.StartRequest(id=words[0]), "start")
    return 0
