"""`kill`: send a signal to a container's process, or to all of its processes."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import matching
from bufferzone.cli.flags import Flag
from bufferzone.client import container, signals
from bufferzone.errors import StateError
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("all a", "", "to every process of the container"), matching.REGEX)
USAGE = "[options] <container-id> [signal]"
DESCRIPTION = """The signal is a name (TERM, SIGTERM, RTMIN+1) or a number; SIGTERM when it is left out.
0 sends nothing: it succeeds while the container lives, and fails after that."""
WORDS = (1, 2)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Send it; with --all a stopped container is no failure, as with runc and crun, unless 0 asks for it."""
    matching.each(options, words[0], lambda id: _kill(options, id, words[1:]))
    return 0


def _kill(options: Options, id: str, signal: list[str]) -> None:
    directory = container.find(options.root, id)
    number = signals.number_of(signal[0]) if signal not in ([], [""]) else signals.TERM  # as runc
    status = state.status(directory)
    if status == state.STOPPED:
        if options.all and number:
            return
        raise container.refusal("kill", id, state.STOPPED)
    if number == 0 and status != state.CREATING:
        return  # it lives: what kill(2) answers to 0
    request = task.KillRequest(id=id, signal=number, all=options.all)
    try:
        container.ask(directory, "Kill", request, "kill")
    except StateError:
        if not options.all:
            raise
