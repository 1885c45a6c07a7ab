"""How do I do the slow part once, and go on from there many times?

A sandbox of an image or a directory is prepared; its forks are VMs of their own that go on from there, with
its files and memory. What one of them writes no other sees.

    examples/fork_many.py alpine
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import bufferzone

FORKS = 2
SHARE = "cat /data; echo $1 >>/data; wc -l </data; cat /proc/sys/kernel/random/uuid"


def share(sb: bufferzone.Sandbox, number: int) -> list[str]:
    """What one of them says of its share of the work."""
    return sb.run(["sh", "-c", SHARE, "sh", str(number)], timeout_s=60).stdout.splitlines()


def main(image: str) -> None:
    """Prepare one, fork it, and let all of them work at the same time."""
    with bufferzone.Sandbox(image, disk=True, memory_mib=128) as sb:
        sb.files.write("/data", "what took long\n")
        boxes = [sb, *sb.fork(FORKS)]
        with ThreadPoolExecutor(len(boxes)) as pool:
            told = list(pool.map(share, boxes, range(len(boxes))))
        for box in boxes:
            box.close()
    for number, (found, lines, _) in enumerate(told):
        print(f"{number}: found {found!r}, has {lines} lines now")
    print(f"random numbers: {len({uuid for _, _, uuid in told})} different")


if __name__ == "__main__":
    main(sys.argv[1])
