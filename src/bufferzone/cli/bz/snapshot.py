"""`bz snapshot CONTAINER NAME`: save what was prepared, for `bz restore` and the library."""

from __future__ import annotations

from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.workload import snapshots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("replace", "", "take an older one of that name away, once this one is whole"),
    Flag("reseed-file", "PATH", "a file inside that gets fresh random bytes in each that goes on"),
    Flag("reseed-signal", "SIGNAL", "what its command is sent then, such as USR1"),
    Flag("reseed-hook", "PROGRAM", "what is run in it then"),
    Flag("reseed-timeout", "SECONDS", "how long that may take", kind="int", default=30),
)
USAGE = "[options] CONTAINER NAME"
DESCRIPTION = (
    "The container goes on. It has its root file system on a disk (bz run --disk), no network and no "
    "volumes, and nothing of bz exec runs in it."
)
WORDS = (2, 2)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Save it; the name is printed."""
    hook = (options.reseed_hook,) if options.reseed_hook else ()
    reseed = snapshots.Reseed(
        file=options.reseed_file,
        signal=options.reseed_signal,
        hook=hook,
        timeout_s=options.reseed_timeout,
    )
    snapshots.save(chosen.directory(options.root, words[0]), words[1], reseed, replace=options.replace)
    output.print_text(f"{words[1]}\n")
    return 0
