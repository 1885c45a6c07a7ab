"""`start`: run the process of a created container."""

from __future__ import annotations

from bufferzone.client import container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "<container-id>"
DESCRIPTION = "Waits up to 10 s for a create that is under way."
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Start it."""
    container.start(container.find(options.root, words[0]))
    return 0
