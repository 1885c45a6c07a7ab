"""What crosses between two loopbacks, in namespaces of the real kernel: a second one is the VM, and a veth
stands for its tap, a server behind a translation of ports for Docker's.
"""

import errno
import os
import select
import shutil
import socket
import subprocess
import threading
from functools import partial

import pytest

from bufferzone.guest import loopback as guest_loopback
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink
from bufferzone.network import interfaces, namespace, tcfilter
from bufferzone.sandbox.crossing import Crossing
from bufferzone.wire import network as messages

NAME, GUEST, OUTSIDE = (f"bz{letter}{os.getpid()}" for letter in "lmn")
ADDRESS = "10.9.8.7"
WAIT_S = 60
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("nft"),
    reason="needs root, iproute2 and nft: network namespaces",
)


def ip(*words):
    done = subprocess.run(["ip", *map(str, words)], check=True, timeout=120, capture_output=True)
    return done.stdout.decode()


class World:
    """(`host`, `guest`, `outside`) namespaces; eth0 of the first leads to the last, and is joined with `tap`,
    behind which the guest has it.
    """

    def __init__(self):
        for name in (NAME, GUEST, OUTSIDE):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        self.host, self.guest, self.outside = (
            namespace.open_path(f"/run/netns/{name}") for name in (NAME, GUEST, OUTSIDE)
        )
        for name, peer, where in (("eth0", "eth0", OUTSIDE), ("tap", "vm", GUEST)):
            ip("-n", NAME, "link", "add", name, "type", "veth", "peer", "name", peer, "netns", where)
            ip("-n", NAME, "link", "set", name, "up")
        ip("-n", NAME, "link", "set", "tap", "alias", "bufferzone")
        ip("-n", NAME, "address", "add", f"{ADDRESS}/24", "dev", "eth0")
        ip("-n", OUTSIDE, "address", "add", "10.9.8.1/24", "dev", "eth0")
        ip("-n", OUTSIDE, "link", "set", "eth0", "up")
        (self.eth0,) = namespace.inside(self.host, lambda: interfaces.scan(4))
        ip("-n", GUEST, "link", "set", "vm", "name", "eth0", "address", self.eth0.mac.hex(":"), "up")
        ip("-n", GUEST, "address", "add", f"{ADDRESS}/24", "dev", "eth0")
        namespace.inside(self.host, lambda: tcfilter.join("eth0", "tap"))
        self.crossing = Crossing()

    def cross(self):
        """Both ends, as the host does it and as it tells the agent."""
        self.crossing.follow(self.host, [(0, "tap", self.eth0)])
        made = self.crossing.with_rows(self.eth0, 0)
        told = messages.Interface(
            name="eth0",
            localnet=self.crossing.is_localnet(made),
            resolver=self.crossing.guest_address(made, 0),
        )
        namespace.inside(self.guest, partial(self._in_guest, made, told))
        return told

    def _in_guest(self, made, told):
        with Netlink() as netlink:
            index = socket.if_nametoindex("eth0")
            if told.localnet:
                guest_loopback.configure(netlink, index, told)
            for row in made.neighbours:
                rtnetlink.add_neighbour(netlink, index, row)
            for row in made.routes[len(self.eth0.routes) :]:
                rtnetlink.add_route(netlink, index, row)

    def close(self):
        self.crossing.end(self.host)
        for fd in (self.host, self.guest, self.outside):
            os.close(fd)
        for name in (NAME, GUEST, OUTSIDE):
            ip("netns", "del", name)


@pytest.fixture
def world():
    made = World()
    try:
        yield made
    finally:
        made.close()


def udp(fd, address=None):
    def work():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(WAIT_S)
        if address:
            sock.bind(address)
        return sock

    return namespace.inside(fd, work)


@pytest.fixture
def docker(world):
    """What Docker has in a container's namespace: a server at 127.0.0.11 whose port is another."""
    datagrams = udp(world.host, ("127.0.0.11", 0))
    streams = namespace.inside(world.host, lambda: socket.create_server(("127.0.0.11", 0)))
    rules = "table ip docker {\n chain out { type nat hook output priority -100;\n"
    for sock, protocol in ((datagrams, "udp"), (streams, "tcp")):
        rules += f"ip daddr 127.0.0.11 {protocol} dport 53 dnat to 127.0.0.11:{sock.getsockname()[1]}\n"
    subprocess.run(
        ["ip", "netns", "exec", NAME, "nft", "-f", "-"], input=(rules + " }\n}\n").encode(), check=True
    )

    def answer():
        while True:
            query, sender = datagrams.recvfrom(999)
            if query == b"end":
                return
            datagrams.sendto(b"answer to " + query, sender)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with datagrams, streams:
        yield streams
        with udp(world.host) as sender:
            sender.sendto(b"end", datagrams.getsockname())
        thread.join()


def test_the_guest_asks_the_resolver_of_the_namespace(world, docker):
    told = world.cross()
    assert told.resolver == bytes((169, 254, 98, 129))
    with udp(world.guest) as one, udp(world.guest) as two:
        for sock, query in ((one, b"one"), (two, b"two")):
            sock.sendto(query, ("127.0.0.11", 53))
        assert [sock.recvfrom(999) for sock in (two, one)] == [
            (b"answer to two", ("127.0.0.11", 53)),
            (b"answer to one", ("127.0.0.11", 53)),
        ]

    def connect():
        return socket.create_connection(("127.0.0.11", 53), WAIT_S)

    with namespace.inside(world.guest, connect) as client:
        server, _ = docker.accept()
        with server:
            client.sendall(b"long question")
            assert server.recv(999) == b"long question"
            server.sendall(b"long answer")
            assert client.recv(999) == b"long answer"


def test_a_server_that_comes_later_is_found_and_the_relay_is_kept(world, docker):
    world.cross()
    relay = world.crossing._relay
    world.cross()
    assert world.crossing._relay is relay
    with udp(world.guest) as sock:
        sock.sendto(b"again", ("127.0.0.11", 53))
        assert sock.recv(999) == b"answer to again"


def test_where_nobody_serves_nothing_is_changed(world):
    before = ip("-n", NAME, "route", "show", "table", "all"), ip("-n", NAME, "address")
    told = world.cross()
    assert (told.localnet, told.resolver) == (False, b"")
    assert (ip("-n", NAME, "route", "show", "table", "all"), ip("-n", NAME, "address")) == before


def test_the_resolver_asks_servers_outside_and_gets_their_answers(world, docker):
    """Docker asks from within the namespace, whose packets are the guest's otherwise."""
    world.cross()
    with udp(world.outside, ("", 53)) as server, udp(world.host) as asking:
        asking.sendto(b"external", ("10.9.8.1", 53))
        query, sender = server.recvfrom(999)
        assert (query, sender[0]) == (b"external", ADDRESS)
        server.sendto(b"known", sender)
        assert asking.recv(999) == b"known"


def test_the_guest_asks_servers_outside_by_itself(world, docker):
    world.cross()
    with udp(world.outside, ("", 53)) as server, udp(world.guest) as asking:
        asking.sendto(b"external", ("10.9.8.1", 53))
        _, sender = server.recvfrom(999)
        server.sendto(b"known", sender)
        assert asking.recv(999) == b"known"


def test_localhost_in_the_namespace_is_the_guests_until_the_end(world):
    world.crossing.localhost = True
    world.cross()
    listener = namespace.inside(world.guest, lambda: socket.create_server(("127.0.0.1", 80)))

    def connect():
        return socket.create_connection(("127.0.0.1", 80), WAIT_S)

    with listener, namespace.inside(world.host, connect) as client:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"from the VM")
            assert client.recv(99) == b"from the VM"
    world.crossing.end(world.host)
    assert "local 127.0.0.1 " in ip("-n", NAME, "route", "show", "table", "local")
    with pytest.raises(ConnectionRefusedError):
        namespace.inside(world.host, connect)


@pytest.mark.parametrize("direction", ["to", "from"])
def test_nobody_outside_reaches_a_loopback_address_of_the_guest(world, docker, direction):
    world.crossing.localhost = True
    world.cross()
    for name in ("default", "all", "eth0"):
        path = f"net.ipv4.conf.{name}.route_localnet=1"
        subprocess.run(["ip", "netns", "exec", OUTSIDE, "sysctl", "-qw", path], check=True)
    target = "127.0.0.5" if direction == "to" else ADDRESS
    ip("-n", OUTSIDE, "neighbour", "replace", target, "lladdr", world.eth0.mac.hex(":"), "dev", "eth0")
    ip("-n", OUTSIDE, "route", "replace", f"{target}/32", "dev", "eth0", "table", "local")
    listener = udp(world.guest, ("", 4711))
    sending = udp(world.outside, None if direction == "to" else ("127.0.0.6", 0))
    with listener, sending:
        sending.sendto(b"forged", (target, 4711))
        # what is sent after it, and arrives, tells that it did not
        ip("-n", OUTSIDE, "neighbour", "replace", ADDRESS, "lladdr", world.eth0.mac.hex(":"), "dev", "eth0")
        with udp(world.outside, ("10.9.8.1", 0)) as plain:
            plain.sendto(b"plain", (ADDRESS, 4711))
        assert listener.recv(99) == b"plain"
        assert not select.select([listener], [], [], 0)[0]


def test_who_is_not_at_the_wire_gets_no_answer(world, docker):
    world.cross()
    with udp(world.host) as stranger:
        stranger.bind(("127.0.0.1", 0))
        # in the namespace itself the translation leads past the relay
        subprocess.run(["ip", "netns", "exec", NAME, "nft", "flush", "ruleset"], check=True)
        stranger.sendto(b"who", ("127.0.0.11", 53))
        with udp(world.guest) as guest:
            guest.sendto(b"end", ("127.0.0.11", 53))
        assert not select.select([stranger], [], [], 0)[0]


def test_a_port_that_is_taken_is_told_and_the_network_goes_on(world, docker, capfd):
    with udp(world.host, ("127.0.0.11", 53)):
        told = world.cross()
    assert told.localnet
    assert os.strerror(errno.EADDRINUSE) in capfd.readouterr().err
