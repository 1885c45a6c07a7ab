"""The pool's own program.

keep     started by the first `create`, or start by containerd, that finds no keeper: keeps VMs that wait
wait     started by the keeper: boot a VM, wait for a container, then be its shim
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bufferzone.errors import BufferzoneError
from bufferzone.shim import arguments

ACTIONS = ("keep", "wait")


def main(argv: list[str]) -> int:
    """Run one action; returns the exit status. Errors are one line on stderr."""
    os.umask(os.umask(0o077) | 0o022)  # what we make in passing is nobody else's to write
    try:
        parsed = arguments.parse(argv, ACTIONS)
        if parsed.action == "keep":
            from bufferzone.pool import daemon

            return daemon.keep(parsed)
        from bufferzone.pool import worker

        return worker.run(parsed)
    except BufferzoneError as error:
        print(f"bufferzone-pool: {error.line()}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
