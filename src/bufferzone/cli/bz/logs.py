"""`bz logs`: what a detached container wrote. One that an engine made has its log there."""

from __future__ import annotations

import os
import time

from bufferzone import state
from bufferzone.cli.bz import chosen
from bufferzone.cli.flags import Flag
from bufferzone.errors import NotFoundError
from bufferzone.log import shown
from bufferzone.workload import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("follow f", "", "go on until it ends"),)
USAGE = "[options] NAME"
DESCRIPTION = "Its stdout goes to ours, its stderr to ours; which came first is not kept."
WORDS = (1, 1)
INTERSPERSED = True
_LOOK_S = 0.1  # a file that grows cannot be polled


def run(options: Options, words: list[str]) -> int:
    """Print it."""
    directory = chosen.directory(options.root, words[0])
    bundle = str(state.read_state(directory)["bundle"])
    try:
        names = [os.path.join(bundle, name) for name in (place.OUT, place.ERR)]
        files = [(os.open(name, os.O_RDONLY | os.O_CLOEXEC), fd) for fd, name in enumerate(names, 1)]
    except OSError:
        hint = "podman logs, docker logs; bz run -d keeps one"
        raise NotFoundError(f"no log of {shown(words[0])} is kept here", hint=hint, code="no-log") from None
    while True:
        ended = not options.follow or _is_over(directory)
        for file, fd in files:
            while data := os.read(file, 1 << 16):
                while data:
                    data = data[os.write(fd, data) :]
        if ended:
            return 0
        time.sleep(_LOOK_S)


def _is_over(directory: str) -> bool:
    return not os.path.isdir(directory) or state.status(directory) == state.STOPPED
