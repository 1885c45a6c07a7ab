"""How do I reach a server in a sandbox, and decide what it may reach itself?

A port of this host leads in. The sandbox itself may reach one port of one address, and is refused all else.

    examples/reach_a_server.py
"""

from __future__ import annotations

import socket
import time
import urllib.request

import bufferzone

SERVER = ["python3", "-m", "http.server", "8000", "--directory", "/usr/share/common-licenses"]
CALL = "import socket; socket.create_connection(('198.51.100.1', 80), timeout=30)"


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def fetch(port: int) -> str:
    """The first line of a page, as soon as the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/BSD", timeout=30) as answer:
                return str(answer.readline().decode().strip())
        except OSError:  # the server is not there yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main() -> None:
    """Ask a server in a sandbox for a page, then let the sandbox call somebody."""
    ports = [f"127.0.0.1:{free_port()}:8000"]
    with bufferzone.Sandbox(
        command=SERVER, network="passt", ports=ports, egress=["tcp:192.0.2.7:443"], memory_mib=256
    ) as sb:
        print("a page:", fetch(sb.ports[0].host))
        called = sb.run(["python3", "-c", CALL], timeout_s=60)
        print("a call:", called.stderr.splitlines()[-1])


if __name__ == "__main__":
    main()
