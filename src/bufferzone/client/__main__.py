"""The waiter as a program of its own, for callers that cannot be forked: see `client.detach`.

Reads the job, as JSON, from descriptor 3, forks the waiter, writes its pid there and ends; the waiter writes
one line more. Stdio is that of the process in the VM.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bufferzone.client import detach, handshake, waiter
from bufferzone.client.job import Job
from bufferzone.errors import BufferzoneError

_MOST_FDS = 1 << 20


def main() -> int:
    """Fork it; the exit status of whichever of the two we are."""
    talk = detach.TALK_FD
    os.set_inheritable(talk, False)
    os.closerange(talk + 1, _MOST_FDS)  # what the caller's libraries left inheritable
    with open(talk, "rb", closefd=False) as file:
        job = Job.from_json(file.read())
    waiter.get_ready()
    try:
        pid = detach.fork(job)
    except BufferzoneError as error:
        os.write(talk, handshake.error_line(error))
        return 1
    if pid == 0:
        os._exit(waiter.stand(job, (0, 1, 2), talk))
    os.write(talk, b"%d\n" % pid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
