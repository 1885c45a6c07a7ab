"""`delete`: free what a container holds, end its shim, remove its state. With --force from any state."""

from __future__ import annotations

from bufferzone.cli.flags import Flag
from bufferzone.client import container, removal
from bufferzone.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("force f", "", "kill it first if it runs; an unknown id is no failure"),)
USAGE = "[options] <container-id>"
DESCRIPTION = ""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Delete it, whatever is left of it."""
    try:
        directory = container.find(options.root, words[0])
    except NotFoundError:
        if options.force:
            return 0
        raise
    removal.remove(directory, words[0], force=options.force, program=options.shim)
    return 0
