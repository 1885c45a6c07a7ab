"""How do I run a service and what it needs in one sandbox?

A counter keeps its data in one container, a page that asks it runs in another. They share a network, so that
the page finds the counter at 127.0.0.1, and neither sees the other's files or processes.

    examples/two_containers.py [IMAGE of the counter, with Python]
"""

from __future__ import annotations

import sys
import time

import bufferzone

COUNTER = """
import pathlib, socket
kept = pathlib.Path("/srv/count")
with socket.create_server(("127.0.0.1", 7000)) as server:
    while True:
        caller, _ = server.accept()
        with caller:
            kept.write_text(str(int(kept.read_text()) + 1 if kept.exists() else 1))
            caller.sendall(kept.read_bytes())
"""
PAGE = """
import pathlib, socket
with socket.create_connection(("127.0.0.1", 7000)) as counter:
    number, there = counter.recv(20).decode(), pathlib.Path("/srv/count").exists()
    print(f"visitor {number} sees the counter's file: {there}")
"""


def visit(page: bufferzone.Sandbox) -> str:
    """One look at the page, as soon as the counter answers."""
    deadline = time.monotonic() + 60
    while not (seen := page.run(["python3", "-c", PAGE], timeout_s=30)).ok:
        if time.monotonic() > deadline:
            raise SystemExit(seen.stderr)
        time.sleep(0.1)
    return seen.stdout.rstrip()


def main() -> None:
    """Visit a page twice, look at its counter, and see that the page outlives it."""
    image = sys.argv[1] if len(sys.argv) > 1 else None
    with bufferzone.Sandbox(memory_mib=256) as page:
        with page.container(image, command=["python3", "-c", COUNTER], memory_mib=64) as counter:
            print(visit(page))
            print(visit(page))
            print("the counter kept:", counter.files.read_text("/srv/count"))
            listed = [info for info in bufferzone.Sandbox.list() if info.sandbox == page.name]
            print("in the sandbox:", len(listed), "more")
        print("without it the page fails:", page.run(["python3", "-c", PAGE]).verdict)


if __name__ == "__main__":
    main()
