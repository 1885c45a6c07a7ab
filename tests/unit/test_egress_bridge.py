"""The egress bridge, on namespaces without a VM: what passes, what is refused and how, what is counted."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bufferzone import record
from bufferzone.errors import HostError
from bufferzone.linux import rtnetlink
from bufferzone.network import egress_bridge, namespace, nft, ruleset, tcfilter
from unit import egress_world as world_of
from unit import frames
from unit.egress_world import World
from unit.hostile import GATEWAY4, GATEWAY_MAC, GUEST4, GUEST6, MAC

RULES = (
    "tcp:192.0.2.7:443",
    "udp:192.0.2.7:53",
    "icmp:192.0.2.7",
    "tcp:[fd00::/8]:400-443",
    "udp:[fd00::/8]:53",
)
ALLOWED, DENIED = ("192.0.2.7", "fd00::7"), ("198.51.100.9", "2001:db8::9")


@pytest.fixture(scope="module")
def world():
    world_of.need_what_it_takes()
    with World() as made:
        made.build(*RULES)
        yield made


@pytest.fixture
def count(world):
    """How much a counter rose since the test began."""
    before = world.counters()
    return lambda name: world.counters()[name] - before[name]


@pytest.mark.parametrize("host", ALLOWED)
def test_an_allowed_connection_passes_and_is_not_counted(world, count, host):
    server = world.listen(world.outside, host, 443)
    client = world.connect(world.guest, host, 443)
    accepted, peer = server.accept()
    with accepted:
        assert peer[0] in (GUEST4, GUEST6)
        client.sendall(b"question")
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(100) == b"answer"
    assert count("denied") == 0


@pytest.mark.parametrize(("host", "port"), [(h, 80) for h in ALLOWED] + [(h, 443) for h in DENIED])
def test_a_denied_connection_is_reset_at_once_and_counted(world, count, host, port):
    world.listen(world.outside, host, port)
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        world.connect(world.guest, host, port)
    assert time.monotonic() - began < 0.9  # a second SYN would be sent after a second
    assert count("denied") == 1


@pytest.mark.parametrize("host", ALLOWED)
def test_allowed_datagrams_pass_both_ways(world, count, host):
    server = world.udp(world.outside, host, 53)
    client = world.udp(world.guest, peer=(host, 53))
    client.send(b"question")
    data, peer = server.recvfrom(100)
    server.sendto(data + b" answered", peer)
    assert client.recv(100) == b"question answered"
    assert count("denied") == 0


@pytest.mark.parametrize(
    ("host", "port", "number"),
    [
        ("192.0.2.7", 54, errno.EHOSTUNREACH),
        ("198.51.100.9", 53, errno.EHOSTUNREACH),
        ("fd00::7", 54, errno.EACCES),
        ("2001:db8::9", 53, errno.EACCES),
    ],
)
def test_each_of_many_denied_datagrams_is_answered_with_an_icmp_error(world, count, host, port, number):
    client = world.udp(world.guest, peer=(host, port))
    for _ in range(20):  # more than the kernel's own limit on ICMP errors lets pass at once
        client.send(b"x")
        with pytest.raises(OSError, match=os.strerror(number)):
            client.recv(100)
    assert count("denied") == 20


@pytest.mark.parametrize("host", [GUEST4, GUEST6])
def test_who_calls_from_outside_is_answered(world, count, host):
    server = world.listen(world.guest, host, 8080)
    client = world.connect(world.outside, host, 8080)
    accepted, _ = server.accept()
    with accepted:
        client.sendall(b"request")
        assert accepted.recv(100) == b"request"
        accepted.sendall(b"response")
        assert client.recv(100) == b"response"
    asked = world.udp(world.guest, host, 5353)
    asker = world.udp(world.outside, peer=(host, 5353))
    asker.send(b"ping")
    data, peer = asked.recvfrom(100)
    asked.sendto(data, peer)
    assert asker.recv(100) == b"ping"
    assert count("denied") == 0


def test_echo_is_allowed_by_an_icmp_rule_and_by_nothing_else(world, count):
    def echo(host):
        kind, protocol = (8, socket.IPPROTO_ICMP) if ":" not in host else (128, socket.IPPROTO_ICMPV6)
        pinger = world.socket(world.guest, world_of.family_of(host), socket.SOCK_RAW, protocol)
        pinger.connect((host, 0))
        # identifier and number 0, so that the IPv4 sum is that of the type; the kernel makes IPv6's
        pinger.send(bytes([kind, 0, 255 - kind if kind == 8 else 0, 255 if kind == 8 else 0, 0, 0, 0, 0]))
        return pinger

    assert echo("192.0.2.7").recv(100)[20] == 0
    assert count("denied") == 0
    echo("198.51.100.9")
    assert count("denied") == 1
    echo("fd00::7")
    assert count("denied") == 2


@pytest.fixture
def fresh():
    world_of.need_what_it_takes()
    with World() as made:
        yield made


def test_where_nothing_is_allowed_only_answers_leave(fresh):
    fresh.build("none")
    fresh.listen(fresh.outside, "192.0.2.7", 443)
    with pytest.raises(ConnectionRefusedError):
        fresh.connect(fresh.guest, "192.0.2.7", 443)
    fresh.listen(fresh.guest, GUEST4, 80)
    fresh.connect(fresh.outside, GUEST4, 80)
    assert fresh.counters()["denied"] == 1


@pytest.mark.parametrize(("host", "name"), [("192.0.2.7", "iptables"), ("fd00::7", "ip6tables")])
def test_what_the_rules_do_not_see_does_not_pass(fresh, host, name):
    fresh.build(*RULES)
    server = fresh.udp(fresh.outside, host, 53)
    client = fresh.udp(fresh.guest, peer=(host, 53))
    client.send(b"seen")
    assert server.recv(100) == b"seen"

    def look_away():
        with open(f"/proc/sys/net/bridge/bridge-nf-call-{name}", "w") as file:
            file.write("0")

    namespace.inside(fresh.bridge, look_away)
    sniffer = fresh.frames(fresh.outside, "out")
    client.send(b"not seen")
    marker = fresh.frames(fresh.guest, "eth0")
    question = frames.arp(1, MAC, GUEST4, GATEWAY4)
    marker.send(frames.ether(GATEWAY_MAC, MAC, frames.ARP, question))
    while (frame := sniffer.recv(65536))[12:14] != b"\x08\x06":
        assert b"not seen" not in frame


def test_a_gate_that_cannot_be_made_leaves_nothing(fresh, monkeypatch):
    def refuse(rules):
        raise HostError("no")

    before = fresh.ip("container", "-o", "link")
    monkeypatch.setattr(nft, "load", refuse)
    with pytest.raises(HostError, match="no"):
        fresh.build(*RULES)
    assert fresh.ip("container", "-o", "link") == before
    assert "bz0" in fresh.ip("bridge", "-o", "link")
    assert "bz1" not in fresh.ip("bridge", "-o", "link")


def test_rules_that_the_kernel_refuses_are_one_line_with_its_words(fresh):
    broken = {"nftables": [{"add": {"table": {"family": "nonsense", "name": "x"}}}]}
    with pytest.raises(HostError) as caught:
        namespace.inside(fresh.bridge, lambda: nft.load(broken))
    assert caught.value.code == "nft-failed"
    assert "nonsense" in caught.value.message
    assert "\n" not in caught.value.line()


def test_a_machine_without_nft_is_told_what_is_missing(fresh, monkeypatch):
    monkeypatch.setattr(nft, "_PROGRAMS", ("/nonexistent/nft",))
    with pytest.raises(HostError) as caught:
        fresh.build(*RULES)
    assert caught.value.line() == "egress: the program nft is missing (hint: apt-get install nftables)"


def test_with_the_last_descriptor_the_gate_and_its_far_end_are_gone(fresh):
    parked = tcfilter.park()
    bridges = egress_bridge.EgressBridges(())
    bridges.follow(0, parked.namespace_fd, fresh.interface)
    tcfilter.move(parked.namespace_fd, fresh.container, "bzfar", 1500, end=egress_bridge.FAR)
    assert "bzfar" in fresh.ip("container", "-o", "link")
    bridges.close()
    os.close(parked.namespace_fd)
    os.close(parked.fd)
    fresh.await_links(fresh.container, lambda: "bzfar" not in fresh.ip("container", "-o", "link"))


def test_addresses_within_each_others_networks_are_no_conflict(fresh):
    more = [("fd99::3", 128), ("fd99::4", 48), ("fd99:0:0:5::1", 64), ("10.99.0.3", 32), ("10.0.0.1", 8)]
    extra = [
        rtnetlink.Address(local=socket.inet_pton(world_of.family_of(text), text), prefix=prefix)
        for text, prefix in more
    ]
    addresses = (*fresh.interface.addresses, *extra)
    fresh.interface = record.replace(fresh.interface, addresses=addresses)
    fresh.build(*RULES)
    assert set(fresh.counters()) == {ruleset.DENIED, ruleset.FORGED}


def test_root_of_a_user_namespace_has_the_same_gate():
    world_of.need_what_it_takes()
    program = (
        "import sys, pytest; from bufferzone.linux import mount; mount.mount('run', '/run', 'tmpfs', 0, '');"
        "words = ['-q', '-p', 'no:cacheprovider', '-k', 'connection or datagrams'];"
        "sys.exit(pytest.main([*words, sys.argv[1]]))"
    )
    root = Path(__file__).parents[2]
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--net",
        sys.executable,
        "-c",
        program,
        __file__,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"}
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare" in done.stderr:
        pytest.skip(f"needs user namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[0].split()[0] == "." * 12  # none of them skipped


def test_a_gate_follows_the_interface_to_another_mtu(fresh):
    fresh.build("udp:192.0.2.7:53")
    server = fresh.udp(fresh.outside, "192.0.2.7", 53)
    for name, device in (
        ("guest", "eth0"),
        ("container", "eth0"),
        ("outside", "out"),
        ("container", "bzfar"),
    ):
        fresh.ip(name, "link", "set", device, "mtu", "9000")
    fresh.bridges.follow(0, fresh.bridge, record.replace(fresh.interface, mtu=9000))
    client = fresh.udp(fresh.guest, peer=("192.0.2.7", 53))
    client.send(bytes(8900))
    assert len(server.recv(9000)) == 8900
    fresh.bridges.follow(0, fresh.bridge, fresh.interface)
    client.send(bytes(8900))
    client.send(b"small")
    assert server.recv(9000) == b"small"


def test_a_gate_follows_the_interface_to_another_address(fresh):
    fresh.build("tcp:192.0.2.7:443")
    fresh.listen(fresh.outside, "192.0.2.7", 443)
    fresh.connect(fresh.guest, "192.0.2.7", 443)
    with pytest.raises(ConnectionRefusedError):
        fresh.connect(fresh.guest, "192.0.2.7", 80)
    other = rtnetlink.Address(local=socket.inet_pton(socket.AF_INET, "10.99.0.9"), prefix=24)
    fresh.bridges.follow(0, fresh.bridge, record.replace(fresh.interface, addresses=(other,)))
    assert fresh.counters()["denied"] == 1
    for name in ("guest", "container"):
        fresh.ip(name, "address", "add", "10.99.0.9/24", "dev", "eth0")
    fresh.ip("guest", "route", "replace", "default", "via", GATEWAY4, "src", "10.99.0.9")
    client = fresh.connect(fresh.guest, "192.0.2.7", 443)
    assert client.getsockname()[0] == "10.99.0.9"
    with pytest.raises(ConnectionRefusedError):
        fresh.connect(fresh.guest, "192.0.2.7", 80)
    old = fresh.socket(fresh.guest, socket.AF_INET, socket.SOCK_STREAM)
    old.settimeout(0.5)
    old.bind((GUEST4, 0))
    with pytest.raises(TimeoutError):
        old.connect(("192.0.2.7", 443))
