"""`bz restore NAME`: a container that goes on where `bz snapshot` saved it."""

from __future__ import annotations

from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.library.sandbox import Sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("name", "NAME", "the name of the container; else it gets one"),)
USAGE = "[options] SNAPSHOT"
DESCRIPTION = "It runs in the background until bz rm -f; bz exec, logs and the others have it as any."
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Start it; its id is printed."""
    box = Sandbox.from_snapshot(words[0], name=options.name, detached=True, root=options.root)
    output.print_text(f"{box.name}\n")
    return 0
