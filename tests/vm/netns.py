"""Network namespaces of a test's own: one for the container, one that is the world outside, wires in between.

    with World() as world:
        world.link("eth0", "10.213.7.2/24", "fd13:7::2/64")     # outside has .1 and ::1
        bundle(..., linux=world.linux())
        server = world.listen("10.213.7.1")

Everything is inside namespaces with names of this process: nothing of the host's own network is touched.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from bufferzone.network import namespace

_KINDS = ("pid", "ipc", "uts", "mount")


def ip(*words: object) -> str:
    """`ip WORDS`; its output."""
    argv = ["ip", *(str(word) for word in words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


class World:
    """A container's namespace `inside` and its surroundings `outside`; both go at the end."""

    _count = 0

    def __init__(self) -> None:
        World._count += 1
        name = f"bzt{os.getpid()}-{World._count}"
        self.inside, self.outside = f"{name}i", f"{name}o"
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> World:
        for name in (self.inside, self.outside):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()
        for name in (self.inside, self.outside):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    @property
    def path(self) -> str:
        """The container's namespace as config.json names it."""
        return f"/run/netns/{self.inside}"

    def linux(self) -> dict[str, Any]:
        """The `linux` section of a container in it."""
        kinds: list[dict[str, str]] = [{"type": kind} for kind in _KINDS]
        return {"namespaces": [*kinds, {"type": "network", "path": self.path}]}

    def link(self, name: str, *addresses: str, into: str = "", mtu: int = 1500, mac: str = "") -> None:
        """A veth `name` in the container's namespace (`into`: another, by name or pid); the first address
        of each subnet is outside's.
        """
        inside, peer = into or self.inside, f"o{name}"
        more = ["address", mac] if mac else []
        ip("-n", self.outside, "link", "add", peer, "mtu", mtu, "type", "veth", "peer", "name", name,
           "mtu", mtu, *more, "netns", inside)  # fmt: skip
        ip("-n", self.outside, "link", "set", peer, "up")
        for address in addresses:
            net, _, prefix = address.partition("/")
            first = net[: net.rindex(":" if ":" in net else ".") + 1] + "1"
            ip("-n", self.outside, "address", "add", f"{first}/{prefix}", "dev", peer, *_no_dad(net))
        if inside == self.inside:
            for address in addresses:
                ip("-n", inside, "address", "add", address, "dev", name, *_no_dad(address))
            ip("-n", inside, "link", "set", name, "up")

    def ip(self, *words: object) -> str:
        """`ip WORDS` inside."""
        return ip("-n", self.inside, *words)

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """A listening TCP socket outside."""

        def make() -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(64)
            return sock

        sock = self._outside(make)
        self._sockets.append(sock)
        return sock

    def connect(self, address: str, port: int, timeout_s: float = 120.0) -> socket.socket:
        """A TCP connection from outside."""
        sock = self._outside(lambda: socket.create_connection((address, port), timeout_s))
        self._sockets.append(sock)
        return sock

    def trust_addresses(self) -> None:
        """IPv6 addresses of links that are made outside from now on can be used at once: until a kernel has
        looked for another that has it, nobody can bind to one (RFC 4862, 5.4).
        """
        setting = Path("/proc/sys/net/ipv6/conf/default/accept_dad")
        self._outside(lambda: setting.write_text("0"))

    def left(self) -> list[str]:
        """Taps and traffic control inside: there must be none once the container is gone."""
        return left_in(self.inside)

    def _outside(self, make: Any) -> socket.socket:
        fd = namespace.open_path(f"/run/netns/{self.outside}")
        try:
            made: socket.socket = namespace.inside(fd, make)
            return made
        finally:
            os.close(fd)


class Mounts:
    """A mount namespace with an empty tmpfs on each of `covered`; `before` are the words that enter it.

    What is mounted in there is not seen outside, and goes with `close`.
    """

    def __init__(self, *covered: str) -> None:
        argv = ["unshare", "--mount", "--propagation", "slave", "cat"]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.write(b"x")
        assert self._holder.stdout.read(1) == b"x"  # it runs, so it is in there
        self.before = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt")
        for directory in covered:
            os.makedirs(directory, exist_ok=True)
            mount = ("mount", "-t", "tmpfs", "bufferzone-tests", directory)
            subprocess.run((*self.before, *mount), timeout=120, check=True)

    def close(self) -> None:
        """Let go of it."""
        self._holder.communicate()


def left_in(name: str) -> list[str]:
    """Taps of ours and ingress qdiscs in a named network namespace, one line each."""
    taps = [line for line in ip("-n", name, "-o", "link", "show", "type", "tun").splitlines() if line]
    qdiscs = subprocess.run(["tc", "-n", name, "qdisc"], capture_output=True, text=True, check=True).stdout
    return [f"tap {tap}" for tap in taps] + [line for line in qdiscs.splitlines() if "ingress" in line]


def _no_dad(address: str) -> tuple[str, ...]:
    return ("nodad",) if ":" in address else ()
