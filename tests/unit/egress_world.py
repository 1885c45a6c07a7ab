"""A guest behind an egress bridge, a container's namespace and the outside: four network namespaces, no VM.

The guest's end is a veth that stands for the tap. Sockets are opened inside a namespace and stay in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from contextlib import closing, suppress
from functools import partial

import pytest

from bufferzone import egress
from bufferzone.network import egress_bridge, interfaces, namespace, tcfilter
from unit.hostile import GATEWAY4, GATEWAY6, GATEWAY_MAC, GUEST4, GUEST6, GUEST_LOCAL, MAC

TIMEOUT_S = 60.0
OUTSIDE4, OUTSIDE6 = ("192.0.2.7", "198.51.100.9"), ("fd00::7", "2001:db8::9")


def need_what_it_takes():
    """Skip where the machine lacks something."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"needs {program}: apt-get install {package}")
    if not os.path.exists("/proc/sys/net/bridge"):
        pytest.skip("needs br_netfilter in the kernel")


def ip(*words):
    """Run ip(8)."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


class World:
    """The namespaces `guest`, `bridge`, `container` and `outside` as descriptors; `build` makes the bridge.

    A world for a VM has no `guest` and no `bridge`.
    """

    def __init__(self, *, vm=False):
        self._vm = vm
        self._names = ("container", "outside") if vm else ("guest", "bridge", "container", "outside")
        self._prefix = f"bzeg-{os.getpid()}-{secrets.token_hex(3)}"
        self._opened = []
        self.interface = None

    def __enter__(self):
        for name in self._names:
            ip("netns", "add", f"{self._prefix}-{name}")
            fd = namespace.open_path(f"/run/netns/{self._prefix}-{name}")
            setattr(self, name, fd)
        self._make_links()
        return self

    def __exit__(self, *_):
        for thing in self._opened:
            thing.close()
        for name in self._names:
            with suppress(OSError, AttributeError):
                os.close(getattr(self, name))
            ip("netns", "del", f"{self._prefix}-{name}")

    @property
    def path(self):
        """The container's namespace as config.json names it."""
        return f"/run/netns/{self._prefix}-container"

    def links(self):
        """The container's interfaces, as `ip` lists them."""
        return self.ip("container", "-o", "link")

    def ip(self, name, *words):
        """ip(8) in one of them."""
        return ip("-n", f"{self._prefix}-{name}", *words)

    def _make_links(self):
        pairs = (("container", "eth0", "outside", "out"), ("guest", "eth0", "bridge", "bz0"))
        for name, own, other, peer in pairs[: 1 if self._vm else 2]:
            self.ip(
                name, "link", "add", own, "type", "veth", "peer", peer, "netns", f"{self._prefix}-{other}"
            )
            self.ip(name, "link", "set", own, "address", MAC, "addrgenmode", "none")
            for address in (f"{GUEST4}/24", f"{GUEST6}/64", f"{GUEST_LOCAL}/64"):
                self.ip(name, "addr", "add", address, "dev", own, *(["nodad"] if ":" in address else []))
            self.ip(name, "link", "set", own, "up")
            self.ip(name, "route", "add", "default", "via", GATEWAY4)
            self.ip(name, "-6", "route", "add", "default", "via", GATEWAY6)
        self.ip("outside", "link", "set", "out", "address", GATEWAY_MAC)
        for address in (GATEWAY4, *OUTSIDE4, GATEWAY6, *OUTSIDE6):
            bits, more = ("64", ["nodad"]) if ":" in address else ("24", [])
            self.ip("outside", "addr", "add", f"{address}/{bits}", "dev", "out", *more)
        self.ip("outside", "link", "set", "out", "up")
        self.interface = namespace.inside(self.container, lambda: interfaces.scan(1))[0]

    def build(self, *rules):
        """Make the bridge and join it with the container's interface."""
        policy = egress.policy(rules)
        assert policy is not None
        self.bridges = egress_bridge.EgressBridges(policy)
        self._opened.append(self.bridges)
        self.bridges.follow(0, self.bridge, self.interface)
        tcfilter.move(self.bridge, self.container, "bzfar", self.interface.mtu, end=egress_bridge.FAR)
        namespace.inside(self.container, partial(tcfilter.join, "eth0", "bzfar"))
        ports = ("bridge", "-d", "link", "show", "master", "bz")
        self.await_links(self.bridge, lambda: self.ip(*ports).count("state forwarding") == 2)

    def await_links(self, where, reached):
        """Wait until `reached()`, asking again whenever a link of the namespace has changed."""
        with closing(
            namespace.inside(where, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
        ) as news:
            news.bind((0, 1))  # RTMGRP_LINK
            news.settimeout(TIMEOUT_S)
            while not reached():
                news.recv(1 << 16)

    def counters(self):
        """What the bridge refused."""
        return self.bridges.counters()

    def socket(self, where, family, kind, protocol=0):
        """A socket of the namespace `where`."""
        made = namespace.inside(where, lambda: socket.socket(family, kind, protocol))
        made.settimeout(TIMEOUT_S)
        self._opened.append(made)
        return made

    def listen(self, where, host, port):
        """A TCP listener."""
        made = self.socket(where, family_of(host), socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen()
        return made

    def connect(self, where, host, port):
        """A TCP connection; raises what connect(2) says."""
        made = self.socket(where, family_of(host), socket.SOCK_STREAM)
        made.connect((host, port))
        return made

    def udp(self, where, host="", port=0, peer=None):
        """A UDP socket, bound or connected."""
        made = self.socket(where, family_of(host or peer[0]), socket.SOCK_DGRAM)
        if host:
            made.bind((host, port))
        if peer:
            made.connect(peer)
        return made

    def frames(self, where, device):
        """A raw socket: every frame that arrives at `device`, and frames to send."""
        made = self.socket(where, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        made.bind((device, 0x0003))
        return made


def family_of(host):
    """The address family of a literal address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
