"""`bz fork ID NEW-ID...`: running copies of a running container, each in a VM of its own."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.client import fork

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("output", "DIR", "where NEW-ID.out and NEW-ID.err get what a copy writes; else it is dropped"),)
USAGE = "[options] ID NEW-ID..."
DESCRIPTION = (
    "The original stands still for a moment and goes on. A copy is an ordinary container afterwards; it "
    "reads nothing from stdin, has no network, and no terminal. The original's root file system has to be on "
    "a disk (annotation bufferzone.rootfs=block), without volumes."
)
WORDS = (2, 1000)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Save once, restore as often as wanted; the ids that came to be are printed."""
    copies = fork.fork(
        state.runtime_root(options.root),
        words[0],
        words[1:],
        output=options.output and state.absolute(options.output),
        shim=options.shim,
        forked=True,
    )
    for name in copies:
        output.print_text(f"{name}\n")
    return 0
