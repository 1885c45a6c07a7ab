"""`bz logs`: what a container wrote in the background, bz's or an engine's."""

from __future__ import annotations

import os
import time

from bufferzone import state
from bufferzone.cli.bz import chosen, engine_logs, roots
from bufferzone.cli.flags import Flag
from bufferzone.errors import NotFoundError
from bufferzone.log import shown
from bufferzone.workload import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

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
    log = _own(bundle) or engine_logs.find(directory, bundle, roots.namespace(os.path.dirname(directory)))
    if log is None:
        hint = "podman logs, docker logs, kubectl logs; bz run -d keeps one"
        raise NotFoundError(f"no log of {shown(words[0])} is kept here", hint=hint, code="no-log")
    while True:
        ended = not options.follow or _is_over(directory)
        for fd, data in log.read():
            while data:
                data = data[os.write(fd, data) :]
        if ended:
            return 0
        time.sleep(_LOOK_S)


class _OwnLog:
    """Two files, one of each stream."""

    def __init__(self, files: list[tuple[int, int]]) -> None:
        self._files = files

    def read(self) -> Iterator[tuple[int, bytes]]:
        """What was added."""
        for file, fd in self._files:
            while data := os.read(file, 1 << 16):
                yield fd, data


def _own(bundle: str) -> _OwnLog | None:
    try:
        names = [os.path.join(bundle, name) for name in (place.OUT, place.ERR)]
        return _OwnLog([(os.open(name, os.O_RDONLY | os.O_CLOEXEC), fd) for fd, name in enumerate(names, 1)])
    except OSError:
        return None


def _is_over(directory: str) -> bool:
    return not os.path.isdir(directory) or state.status(directory) == state.STOPPED
