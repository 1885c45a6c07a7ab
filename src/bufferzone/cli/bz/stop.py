"""`bz stop`: the signal that the image asks for, or TERM; after a time the containers are killed."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.client import container, signals
from bufferzone.errors import BufferzoneError
from bufferzone.wire import task
from bufferzone.workload import from_image, launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("time t", "SECONDS", "how long they have before they are killed", kind="int", default=10),)
USAGE = "[options] NAME..."
DESCRIPTION = ""
WORDS = (1, -1)
INTERSPERSED = True
_GRACE_S = 30.0


def run(options: Options, words: list[str]) -> int:
    """Stop them; the names are printed."""
    for name in words:
        directory = chosen.directory(options.root, name)
        if state.status(directory) != state.STOPPED:
            _stop(directory, float(max(options.time, 0)))
        output.print_text(f"{name}\n")
    return 0


def _stop(directory: str, seconds: float) -> None:
    asked = str(state.read_state(directory)["annotations"].get(from_image.STOP_SIGNAL, ""))
    launch.kill(directory, signals.number_of(asked or "TERM"), everybody=False)
    if not _ended(directory, seconds):
        launch.kill(directory)
        _ended(directory, _GRACE_S)


def _ended(directory: str, seconds: float) -> bool:
    """Whether it ends within that time."""
    request = task.WaitRequest(id=os.path.basename(directory))
    try:
        container.ask(directory, "Wait", request, "stop", timeout_s=max(seconds, 0.01))
    except BufferzoneError:
        return state.status(directory) == state.STOPPED  # the time is over, or it had ended
    return True
