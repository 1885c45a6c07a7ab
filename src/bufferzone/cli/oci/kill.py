"""`kill`: send a signal to a container's process, or to all of its processes."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli.flags import Flag
from bufferzone.client import container, signals
from bufferzone.errors import StateError
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("all a", "", "to every process of the container"),)
USAGE = "[options] <container-id> [signal]"
DESCRIPTION = """The signal is a name (TERM, SIGTERM, RTMIN+1) or a number; SIGTERM when it is left out.
0 sends nothing: it succeeds while the container lives."""
WORDS = (1, 2)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Send it; with --all a stopped container is no failure, as in runc."""
    directory = container.find(options.root, words[0])
    number = signals.number_of(words[1]) if words[1:] not in ([], [""]) else signals.TERM  # as runc
    status = state.status(directory)
    if status == state.STOPPED:
        if options.all and number:
            return 0
        raise container.refusal("kill", words[0], state.STOPPED)
    if number == 0 and status != state.CREATING:
        return 0  # it lives: what kill(2) answers to 0
    request = task.KillRequest(id=words[0], signal=number, all=options.all)
    try:
        container.ask(directory, "Kill", request, "kill")
    except StateError:
        if not options.all:
            raise
    return 0
