"""Routes in namespaces of the real kernel: a second one stands for the VM, a veth for its tap."""

import os
import shutil
import socket
import subprocess

import pytest

from bufferzone.linux.netlink import Netlink
from bufferzone.network import interfaces, namespace, rootlessport, tc, tcfilter

NAME, GUEST = f"bzd{os.getpid()}", f"bzg{os.getpid()}"
ADDRESS = "10.9.8.7"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2: network namespaces"
)


def ip(*words):
    done = subprocess.run(["ip", *map(str, words)], check=True, timeout=120, capture_output=True)
    return done.stdout.decode()


@pytest.fixture
def world():
    """(the container's namespace, the VM's), with eth0 in the former joined to what leads to the latter."""
    for name in (NAME, GUEST):
        ip("netns", "add", name)
    ends = [namespace.open_path(f"/run/netns/{name}") for name in (NAME, GUEST)]
    try:
        for name, peer in (("eth0", "outside"), ("tap", "vm")):
            ip("-n", NAME, "link", "add", name, "type", "veth", "peer", "name", peer)
        ip("-n", NAME, "address", "add", f"{ADDRESS}/24", "dev", "eth0")
        for name in ("lo", "eth0", "outside", "tap"):
            ip("-n", NAME, "link", "set", name, "up")
        ip("-n", NAME, "link", "set", "outside", "alias", "bufferzone")  # nobody's, for the scan
        (mac,) = [row.mac.hex(":") for row in scan(ends[0]) if row.name == "eth0"]
        ip("-n", NAME, "link", "set", "vm", "netns", GUEST)
        ip("-n", GUEST, "link", "set", "vm", "address", mac, "up")
        ip("-n", GUEST, "address", "add", f"{ADDRESS}/24", "dev", "vm")
        namespace.inside(ends[0], lambda: tcfilter.join("eth0", "tap"))
        yield ends
    finally:
        for fd in ends:
            os.close(fd)
        for name in (NAME, GUEST):
            ip("netns", "del", name)


def scan(fd):
    return namespace.inside(fd, lambda: interfaces.scan(4))


def eth0(fd):
    (found,) = [row for row in scan(fd) if row.name == "eth0"]
    return found


def add_routes(world):
    """Open it, and tell the VM what the agent would be told."""
    found = eth0(world[0])
    assert namespace.inside(world[0], lambda: rootlessport.add_routes(found, "tap", 0))
    route, neighbour = rootlessport.guest_routes(0)
    there = socket.inet_ntoa(route.destination)
    ip("-n", GUEST, "route", "replace", f"{there}/32", "dev", "vm", "scope", "link")
    ip("-n", GUEST, "neighbour", "replace", there, "lladdr", neighbour.mac.hex(":"), "dev", "vm")
    return found


def answers(world):
    """What a process of the container's namespace is answered at the interface's address."""
    listener = namespace.inside(world[1], lambda: socket.create_server(("", 80)))

    with listener, namespace.inside(world[0], lambda: socket.create_connection((ADDRESS, 80), 60)) as sock:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"from the VM")
        return sock.recv(100)


def test_without_a_door_a_process_of_the_namespace_reaches_nobody(world):
    with pytest.raises(ConnectionRefusedError):
        answers(world)


def test_through_the_door_a_process_of_the_namespace_reaches_the_vm(world):
    add_routes(world)
    assert answers(world) == b"from the VM"


def test_a_door_may_be_opened_again_and_the_address_is_still_shown(world):
    before = eth0(world[0]).addresses
    add_routes(world)
    add_routes(world)
    assert answers(world) == b"from the VM"
    assert eth0(world[0]).addresses == before

    def filters():
        with Netlink() as netlink:
            return len(tc._filters(netlink, socket.if_nametoindex("tap")))

    once = namespace.inside(world[0], filters)
    add_routes(world)
    assert namespace.inside(world[0], filters) == once


def test_what_is_for_others_still_leaves_by_the_interface(world):
    add_routes(world)

    def listen():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        sock.bind(("outside", 0))
        sock.settimeout(60)
        return sock

    ip("-n", GUEST, "neighbour", "replace", "10.9.8.1", "lladdr", "02:00:00:00:00:09", "dev", "vm")
    with namespace.inside(world[0], listen) as sniffer:
        with namespace.inside(world[1], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"for another", ("10.9.8.1", 4711))
        assert sniffer.recv(2000).endswith(b"for another")


def test_closed_the_address_is_the_namespaces_own_again(world):
    found = add_routes(world)
    namespace.inside(world[0], lambda: rootlessport.remove_routes(found))
    assert "local 10.9.8.7 " in ip("-n", NAME, "route", "show", "table", "local")
    with pytest.raises(ConnectionRefusedError):
        answers(world)


def test_an_interface_without_an_ipv4_address_or_down_has_no_route(world):
    ip("-n", NAME, "link", "set", "eth0", "down")
    found = eth0(world[0])
    assert not namespace.inside(world[0], lambda: rootlessport.add_routes(found, "tap", 0))
    ip("-n", NAME, "link", "set", "eth0", "up")
    ip("-n", NAME, "address", "flush", "dev", "eth0")
    found = eth0(world[0])
    assert not namespace.inside(world[0], lambda: rootlessport.add_routes(found, "tap", 0))


def test_closing_is_no_failure_once_the_interface_is_gone(world):
    found = add_routes(world)
    ip("-n", NAME, "link", "del", "eth0")
    before = ip("-n", NAME, "route", "show", "table", "all")
    namespace.inside(world[0], lambda: rootlessport.remove_routes(found))
    assert ip("-n", NAME, "route", "show", "table", "all") == before  # what is left goes with its tap
