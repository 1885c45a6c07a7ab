"""Runs inside a VM as its root, with every capability: tries to reach what the egress policy denies.

Prints one JSON object per line. `frames.py` and `hostile.py` lie beside it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import hostile


def tell(**values: object) -> None:
    print(json.dumps(values), flush=True)


def call(host: str, port: int) -> None:
    """A TCP connection: what came of it, and after how long."""
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), 20) as sock:
            sock.sendall(b"question")
            came = sock.recv(100).decode()
    except OSError as error:
        came = type(error).__name__
    tell(call=f"{host} {port}", came=came, seconds=time.monotonic() - began)


def send(host: str, port: int) -> None:
    """A datagram: the answer or the error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(120)
        try:
            sock.connect((host, port))
            sock.send(b"question")
            came = sock.recv(100).decode()
        except OSError as error:
            came = os.strerror(error.errno) if error.errno else type(error).__name__
    tell(send=f"{host} {port}", came=came)


def attack() -> None:
    """Every hostile frame, with the number of its name as its tag; then one that may pass, with the next."""
    groups = (hostile.ENCAPSULATED, hostile.FORGED, hostile.AWAY, hostile.MALFORMED, hostile.DENIED)
    names = [build for group in groups for build in group.values()]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        for number, build in enumerate([*names, hostile.plain]):
            sock.send(build(b"BZTAG%03d" % number).ljust(60, b"\0"))
    tell(sent=len(names))


def become_another() -> None:
    """Take another MAC and address, for real, and call as that."""
    for words in (
        ["ip", "link", "set", "eth0", "down"],
        ["ip", "link", "set", "eth0", "address", hostile.OTHER_MAC],
        ["ip", "address", "flush", "dev", "eth0"],
        ["ip", "address", "add", f"{hostile.OTHER4}/24", "dev", "eth0"],
        ["ip", "link", "set", "eth0", "up"],
        ["ip", "route", "add", "default", "via", hostile.GATEWAY4],
        ["ip", "neigh", "add", hostile.GATEWAY4, "lladdr", hostile.GATEWAY_MAC, "dev", "eth0"],
    ):
        subprocess.run(["/bin/busybox", *words], check=False, capture_output=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"BZTAG998", (hostile.OPEN4, 53))
    tell(became=hostile.OTHER4)


def answer_callers() -> None:
    """Serve who calls from outside."""
    server = socket.create_server(("", 8080))

    def serve() -> None:
        while True:
            with server.accept()[0] as sock:
                sock.sendall(b"served " + sock.recv(100))

    threading.Thread(target=serve, daemon=True).start()


def main() -> None:
    answer_callers()
    call(hostile.OPEN4, 443)
    call(hostile.OPEN6, 443)
    for host, port in ((hostile.OPEN4, 80), (hostile.SHUT4, 443), (hostile.OPEN6, 80), (hostile.SHUT6, 443)):
        call(host, port)
    for host, port in ((hostile.OPEN4, 53), (hostile.SHUT4, 53), (hostile.SHUT6, 53)):
        send(host, port)
    attack()
    sys.stdin.read(1)  # until somebody has called from outside
    become_another()
    sys.stdin.read()


if __name__ == "__main__":
    main()
