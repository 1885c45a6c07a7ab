"""`delete`: free what a container holds, end its shim, remove its state. With --force from any state."""

from __future__ import annotations

from bufferzone.cli import matching
from bufferzone.cli.flags import Flag
from bufferzone.client import container, removal
from bufferzone.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("force f", "", "kill it first if it runs; an unknown id is no failure"), matching.REGEX)
USAGE = "[options] <container-id>"
DESCRIPTION = ""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Delete it, whatever is left of it."""
    matching.each(options, words[0], lambda id: _delete(options, id))
    return 0


def _delete(options: Options, id: str) -> None:
    try:
        directory = container.find(options.root, id)
    except NotFoundError:
        if options.force:
            return
        raise
    removal.remove(directory, id, force=options.force, program=options.shim)
