"""`bz rm`: remove containers with all that is theirs on the disk."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import NotFoundError
from bufferzone.workload import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("force f", "", "kill those that run; an unknown name is no failure"),)
USAGE = "[options] NAME..."
DESCRIPTION = ""
WORDS = (1, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Remove them; the names of those that were removed are printed."""
    root = state.runtime_root(options.root)
    for name in words:
        try:
            launch.remove(root, name, force=options.force, shim=options.shim)
        except NotFoundError:
            if not options.force:
                raise
            continue
        output.print_text(f"{name}\n")
    return 0
