"""`run`: create and start; attached it also waits, ends with the exit status and deletes."""

from __future__ import annotations

from bufferzone.cli import process_flags
from bufferzone.cli.flags import Flag, ignored
from bufferzone.cli.oci import create as create_verb
from bufferzone.client import create

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    *create_verb.FLAGS,
    Flag("detach d", "", "do not wait for the end"),
    Flag("keep", "", "do not delete the container when it ended"),
    ignored("no-subreaper", "", "processes of the VM are reaped in the VM"),
)
USAGE = create_verb.USAGE
DESCRIPTION = "Without --detach, stdio, signals and the terminal are passed through until the process ends."
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Run it."""
    return run_from(options, words, "")


def run_from(options: Options, words: list[str], checkpoint: str) -> int:
    """Run it from the beginning, or from the checkpoint in a directory."""
    order = create_verb.order(options, words[0], detached=options.detach, checkpoint=checkpoint)

    def warn() -> None:
        process_flags.warn_of_capabilities(order.spec.process, options.warn)

    if options.detach:
        create.run(order, process_flags.STDIO, forked=True)
        warn()
        return 0
    return create.run_attached(order, process_flags.STDIO, keep=options.keep, pass_signals=True, begun=warn)
