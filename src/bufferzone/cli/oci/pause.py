"""`pause` and `resume`: suspend and continue all processes of a container, in the guest."""

from __future__ import annotations

from bufferzone.client import container
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "<container-id>"
DESCRIPTION = ""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Do what the verb says."""
    directory = container.find(options.root, words[0])
    if options.verb == "pause":
        container.ask(directory, "Pause", task.PauseRequest(id=words[0]), "pause")
    else:
        container.ask(directory, "Resume", task.ResumeRequest(id=words[0]), "resume")
    return 0
