"""For the Debian package: ends with 1 and one line when processes still run from PLACE, which is to go.

    still_running.py PLACE

Shims whose container has just been removed and writers of checkpoints are awaited, makers of templates ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

PROC = "/proc"
#: seconds: for a shim to end, and for a program of its that does one thing
SHIM_S, JOB_S = 5.0, 120.0
MAKER, SAVER = b"template", b"saver"


def main() -> int:
    (place,) = sys.argv[1:]
    begin = time.monotonic()
    for pid, words in processes(place):
        if MAKER in words:
            end(pid)  # nobody waits for a template
        if SAVER not in words:
            await_end(pid, begin + SHIM_S)
    found = processes(place)
    if all(SAVER in words for _, words in found):
        for pid, _ in found:
            await_end(pid, begin + JOB_S)
        found = processes(place)
    if not found:
        return 0
    tell([pid for pid, _ in found])
    return 1


def tell(found: list[int]) -> None:
    """One line for who removes the package."""
    pids = " ".join(map(str, found[:10])) + (" ..." if len(found) > 10 else "")
    print(
        f"bufferzone: still in use by {len(found)} processes: {pids} (hint: remove the containers first, "
        "for each user: bz ps, podman rm -f; VMs that wait: bz pool stop)",
        file=sys.stderr,
    )


def processes(place: str) -> list[tuple[int, list[bytes]]]:
    """Pid and words of each process whose program is a file below `place`, in our own root directory."""
    ours = os.stat(f"{PROC}/self/root")
    found = []
    for name in sorted(filter(str.isdigit, os.listdir(PROC)), key=int):
        try:
            with open(f"{PROC}/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if not any(word.startswith(place.encode() + b"/") for word in words):
                continue
            theirs = os.stat(f"{PROC}/{name}/root")
        except OSError:
            continue  # it has ended
        # a container may have the same path inside, where it means another file
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            found.append((int(name), words))
    return found


def end(pid: int) -> None:
    """Ask a process to end."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass


def await_end(pid: int, until: float) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(max(0.0, until - time.monotonic()) * 1000)
    finally:
        os.close(pidfd)


if __name__ == "__main__":
    sys.exit(main())
