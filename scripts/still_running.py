"""For the Debian package: ends with 1 and one line when processes still run from PLACE, which is to go.

still_running.py PLACE
"""

from __future__ import annotations

import os
import sys

PROC = "/proc"


def main() -> int:
    (place,) = sys.argv[1:]
    found = processes(place)
    if not found:
        return 0
    pids = " ".join(map(str, found[:10])) + (" ..." if len(found) > 10 else "")
    print(
        f"bufferzone: still in use by {len(found)} processes: {pids} (hint: remove the containers first, "
        "for each user: bz ps, podman rm -f; VMs that wait: bz pool stop)",
        file=sys.stderr,
    )
    return 1


def processes(place: str) -> list[int]:
    """The pids whose program is a Python file below `place` in our own root directory."""
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
            found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main())
