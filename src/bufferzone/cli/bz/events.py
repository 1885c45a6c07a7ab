"""`bz events`: what becomes of the containers of this machine, as their shims record it, until it is ended.

The kernel tells when a record changes. What comes and goes between two looks is told as its result.
"""

from __future__ import annotations

import json
import os
import select
import time

from bufferzone.cli import output
from bufferzone.cli.bz import roots
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError
from bufferzone.linux import inotify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("json", "", "one object a line"),)
USAGE = "[options]"
DESCRIPTION = (
    "A line for each new status of a container, and `removed`: time, status, id. Begins with what is there."
)
WORDS = (0, 0)
INTERSPERSED = True

_REMOVED = "removed"


def run(options: Options, words: list[str]) -> int:
    """Tell them as they come."""
    known: dict[str, tuple[str, str]] = {}
    watches = _Watches()
    while True:
        watches.follow(options.root)
        now = {
            directory: (str(found["id"]), str(found["status"]))
            for _, directory, found in roots.containers(options.root)
        }
        for directory, (id, status) in now.items():
            if known.get(directory) != (id, status):
                _tell(options, id, status)
        for directory in known.keys() - now.keys():
            _tell(options, known[directory][0], _REMOVED)
        known = now
        watches.wait()


def _tell(options: Options, id: str, status: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if options.json:
        output.print_text(json.dumps({"time": stamp, "status": status, "id": id}) + "\n")
    else:
        output.print_text(f"{stamp} {status} {id}\n")


class _Watches:
    """The state roots, and the directory of each container."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def follow(self, flag: str) -> None:
        """Hear of what is there now; what is gone is forgotten."""
        wanted = set()
        for root in roots.roots(flag):
            os.makedirs(root, 0o700, exist_ok=True)
            wanted |= {
                root,
                *(entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)),
            }
        for path in self._fds.keys() - wanted:
            os.close(self._fds.pop(path))
        for path in wanted - self._fds.keys():
            try:
                self._fds[path] = inotify.watch_all(path)
            except FileNotFoundError:
                continue  # it was removed meanwhile, which its root tells
            except OSError as error:
                raise HostError(f"cannot watch {path}: {error.strerror}", code="no-watch") from error

    def wait(self) -> None:
        """Until something happens."""
        poller = select.poll()
        for fd in self._fds.values():
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll():
            os.read(fd, 1 << 16)
