"""`bz rm`: remove containers with all that is theirs on the disk."""

from __future__ import annotations

import os

from bufferzone.cli import output
from bufferzone.cli.bz import chosen, roots
from bufferzone.cli.flags import Flag
from bufferzone.errors import NotFoundError, StateError
from bufferzone.log import shown
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
    for name in words:
        try:
            root, id = os.path.split(chosen.directory(options.root, name))
            if roots.namespace(root):
                hint = "ctr, crictl or docker rm"
                raise StateError(f"that container is containerd's: {shown(name)}", hint=hint, code="not-ours")
            launch.remove(root, id, force=options.force, shim=options.shim)
        except NotFoundError:
            if not options.force:
                raise
            continue
        output.print_text(f"{name}\n")
    return 0
