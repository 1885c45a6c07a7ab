"""TCP of a container in a VM beside one under runc, on the same bridge, in one run. Asserts nothing.

    python3 tests/perf/bench_network.py [ROUNDS]

A network namespace of our own is the bridge and the peer; each runtime gets another namespace on it, and runs
the same busybox servers. Rounds alternate between the runtimes; the median is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]

from bufferzone.bench import bundles  # noqa: E402
from bufferzone.linux.process import CLONE_NEWNET, setns  # noqa: E402

ECHO, SINK, SOURCE = 7007, 7009, 7019
MIB = 32
ROUND_TRIPS, CONNECTIONS = 200, 20
SERVERS = (
    f"nc -ll -p {ECHO} -e cat & nc -ll -p {SINK} -e dd of=/dev/null bs=64k & "
    f"nc -ll -p {SOURCE} -e dd if=/dev/zero bs=64k count={MIB * 16} & "
    "until [ $(cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 0A ') -ge 3 ]; do :; done; echo up; wait"
)
HUB, SUBNET = "bzperf-hub", "10.89.77"
DEADLINE_S = 20.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def make_network(names: list[str]) -> None:
    """The hub with its bridge, and a namespace with an eth0 on it for each of `names`."""
    ip("netns", "add", HUB)
    ip("-n", HUB, "link", "add", "br0", "type", "bridge")
    ip("-n", HUB, "addr", "add", f"{SUBNET}.1/24", "dev", "br0")
    ip("-n", HUB, "link", "set", "br0", "up")
    for number, name in enumerate(names):
        space = f"bzperf-{name}"
        ip("netns", "add", space)
        ip("-n", HUB, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", HUB, "link", "set", f"v{number}", "master", "br0", "up")
        ip("-n", space, "addr", "add", f"{SUBNET}.{number + 2}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")


def remove_network(names: list[str]) -> None:
    for space in (HUB, *(f"bzperf-{name}" for name in names)):
        subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)


def start(name: str, program: list[str], directory: Path) -> subprocess.Popen[bytes]:
    """A container with the servers, in its namespace."""
    rootfs = directory / "rootfs"
    if not rootfs.exists():
        bundles.make_rootfs(str(rootfs))
        for applet in ("nc", "dd", "cat", "grep"):
            with contextlib.suppress(FileExistsError):
                (rootfs / "bin" / applet).symlink_to("busybox")
    bundle = bundles.make_bundle(str(directory / name), str(rootfs), {})
    path = Path(bundle) / "config.json"
    spec = json.loads(path.read_text())
    spec["process"]["args"] = ["/bin/busybox", "sh", "-c", SERVERS]
    spec["process"]["env"] = ["PATH=/bin"]
    kept = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "network"]
    spec["linux"]["namespaces"] = [*kept, {"type": "network", "path": f"/run/netns/bzperf-{name}"}]
    path.write_text(json.dumps(spec))
    command = [*program, "--root", str(directory / "state"), "run", "--bundle", bundle, name]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=DEADLINE_S)


def received(address: str) -> float:
    """Seconds to send MIB to the container and see its end of the connection close."""
    with connect(address, SINK) as sock:
        begin = time.perf_counter()
        block = bytes(1 << 20)
        for _ in range(MIB):
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
        return time.perf_counter() - begin


def sent(address: str) -> float:
    """Seconds to read MIB from the container."""
    with connect(address, SOURCE) as sock:
        begin = time.perf_counter()
        while sock.recv(1 << 20):
            pass
        return time.perf_counter() - begin


def round_trip(address: str) -> float:
    """Seconds for a byte to the container's process and back."""
    with connect(address, ECHO) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            sock.sendall(b"x")
            sock.recv(1)
        return (time.perf_counter() - begin) / ROUND_TRIPS


def connection(address: str) -> float:
    """Seconds for a connection of its own for each byte: the server forks for it."""
    begin = time.perf_counter()
    for _ in range(CONNECTIONS):
        with connect(address, ECHO) as sock:
            sock.sendall(b"x")
            sock.recv(1)
    return (time.perf_counter() - begin) / CONNECTIONS


MEASURES = {
    "to the container, MiB/s": (received, MIB),
    "from the container, MiB/s": (sent, MIB),
    "round trip, ms": (round_trip, 0),
    "connection with a request, ms": (connection, 0),
}


def main(rounds: int) -> None:
    runc = shutil.which("runc")
    assert runc, "runc is not installed"
    programs = {"runc": [runc], "bufferzone": [str(ROOT / "bin" / "bufferzone")]}
    names = list(programs)
    times: dict[tuple[str, str], list[float]] = {}
    running: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="bz-perf-") as base:
        os.chmod(base, 0o711)
        try:
            make_network(names)
            for name, program in programs.items():
                running.append(start(name, program, Path(base)))
                assert running[-1].stdout is not None
                assert running[-1].stdout.readline() == b"up\n", name
            with open(f"/run/netns/{HUB}") as hub:
                setns(hub.fileno(), CLONE_NEWNET)
            for _ in range(rounds):
                for what, (measure, _size) in MEASURES.items():
                    for number, name in enumerate(names):
                        times.setdefault((what, name), []).append(measure(f"{SUBNET}.{number + 2}"))
        finally:
            for name, program in programs.items():
                command = [*program, "--root", f"{base}/state", "delete", "--force", name]
                subprocess.run(command, stderr=subprocess.DEVNULL)
            for child in running:
                child.wait(20)
            remove_network(names)
    show(times, names)


def show(times: dict[tuple[str, str], list[float]], names: list[str]) -> None:
    print(f"{'':32}{names[0]:>12}{names[1]:>12}   times runc's")
    for what, (_, size) in MEASURES.items():
        plain, ours = (statistics.median(times[what, name]) for name in names)
        shown = [size / value if size else value * 1000 for value in (plain, ours)]
        print(f"{what:32}{shown[0]:12.2f}{shown[1]:12.2f}   {ours / plain:10.1f} as long")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
