"""What changes in a network namespace while its sandbox runs. No VM: the other end of the tap is ours, the
guest's agent is a list; what the guest does with a change is tried on an interface of the host's.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import socket
import subprocess
import threading
import types

import pytest

from bufferzone.guest import network as guest_network
from bufferzone.linux import netlink as netlink_module
from bufferzone.linux.netlink import Netlink
from bufferzone.network import interfaces, namespace
from bufferzone.network.watch import Watch
from bufferzone.sandbox import network as network_module
from bufferzone.wire import network as messages
from bufferzone.wire.network import FIRST_MAC
from unit.test_sandbox_network import Sandbox, send
from vm.netns import World
from vm.verbs import await_true

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun"),
]


@pytest.fixture
def world():
    with World() as world:
        yield world


class Following(Sandbox):
    """A sandbox whose VM has one NIC and gets no other; `log` is what it said."""

    def __init__(self, world, directory, log):
        super().__init__(world, directory)
        features = types.SimpleNamespace(hotplug_nic=False, label="this VMM")
        self.network._nics._vmm = types.SimpleNamespace(features=features)
        self.log = log

    def addresses(self, name):
        """IPv4 addresses of the guest's interface of that name."""
        found = [i for i in self.agent.told[-1].interfaces if i.name == name] if self.agent.told else []
        rows = [row.local for i in found for row in i.addresses]
        return [socket.inet_ntoa(local) for local in rows if len(local) == 4]


@pytest.fixture
def sandbox(world, tmp_path, monkeypatch):
    log = []
    monkeypatch.setattr(network_module.log, "say", lambda text, level="": log.append(text))
    sandbox = Following(world, tmp_path, log)
    yield sandbox
    sandbox.close()
    assert world.left() == []


def test_an_interface_made_anew_is_the_guests(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    world.ip("link", "delete", "eth0")
    world.link("eth0", "10.213.9.2/24", mac="02:11:22:33:44:66")
    await_true(lambda: sandbox.addresses("eth0") == ["10.213.9.2"], "the new interface")
    assert sandbox.agent.interface().nic == FIRST_MAC
    await_true(lambda: _arrives(world, sandbox, b"BZ anew"), "a frame")
    assert sandbox.log == []


def _arrives(world, sandbox, marker):
    send(world, "eth0", marker)
    return sandbox.receives(marker, timeout_s=0.2)


def test_an_interface_made_anew_just_as_it_was_is_joined_again(world, sandbox):
    world.link("eth0", "10.213.7.2/24", mac="02:11:22:33:44:66")
    sandbox.attach()
    world.ip("link", "delete", "eth0")
    world.link("eth0", "10.213.7.2/24", mac="02:11:22:33:44:66")
    await_true(lambda: _arrives(world, sandbox, b"BZ same"), "a frame")


def test_addresses_routes_neighbours_and_mtu_reach_the_guest(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    now = sandbox.agent.interface
    world.ip("address", "add", "10.213.7.99/24", "dev", "eth0")
    await_true(lambda: sandbox.addresses("eth0") == ["10.213.7.2", "10.213.7.99"], "the address")
    world.ip("link", "set", "eth0", "mtu", "1400")
    await_true(lambda: now().mtu == 1400, "the MTU")
    for gateway in ("10.213.7.9", "10.213.7.8"):
        world.ip("route", "replace", "default", "via", gateway)
        wanted = [socket.inet_aton(gateway)]
        await_true(lambda wanted=wanted: [r.gateway for r in now().routes if r.gateway] == wanted, gateway)
    world.ip(
        "neighbour", "add", "10.213.7.8", "lladdr", "02:11:22:33:44:77", "dev", "eth0", "nud", "permanent"
    )
    await_true(lambda: [row.mac[-1] for row in now().neighbours] == [0x77], "the neighbour")


def _routes(interface, length):
    """Its routes of the family whose addresses are so long: IPv6's link gets one by itself, at its time."""
    return [route for route in interface.routes if len(route.destination) == length]


def test_an_interface_that_is_renamed_or_down_is_so_in_the_guest(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    now = sandbox.agent.interface
    world.ip("link", "set", "eth0", "down")
    await_true(lambda: not now().up, "it to be down")
    world.ip("link", "set", "eth0", "name", "lan0")
    world.ip("link", "set", "lan0", "up")
    await_true(lambda: (now().name, now().up, len(_routes(now(), 4))) == ("lan0", True, 1), "its new name")
    send(world, "eth0", b"BZ renamed")
    assert sandbox.receives(b"BZ renamed")


def test_an_interface_that_goes_is_no_more_and_another_may_come(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    world.ip("link", "delete", "eth0")
    await_true(lambda: not sandbox.agent.told[-1].interfaces, "an empty network")
    await_true(lambda: not world.left(), "the tap to be home")
    world.link("eth1", "10.213.8.2/24")
    await_true(lambda: sandbox.addresses("eth1") == ["10.213.8.2"], "the other interface")


def test_the_first_interface_of_a_namespace_may_come_after_the_start(world, sandbox):
    sandbox.attach()
    world.link("eth0", "10.213.7.2/24")
    await_true(lambda: sandbox.addresses("eth0") == ["10.213.7.2"], "the interface")
    await_true(lambda: _arrives(world, sandbox, b"BZ late"), "a frame")


def test_a_namespace_without_interfaces_gives_way_to_one_with_some(world, sandbox):
    sandbox.attach()
    with World() as other:
        other.link("eth0", "10.213.7.2/24")
        fd = namespace.open_path(other.path)
        try:
            sandbox.network.attach(fd, other.path)
            assert sandbox.addresses("eth0") == ["10.213.7.2"]
            world.link("eth1", "10.213.8.2/24")
            other.ip("link", "set", "eth0", "mtu", "1400")
            await_true(lambda: sandbox.agent.interface().mtu == 1400, "the MTU")
            assert sandbox.agent.interface().name == "eth0"
            sandbox.network.leave(fd)
        finally:
            os.close(fd)


def test_a_vmm_that_plugs_no_nic_says_so_once_and_the_rest_is_followed(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    world.link("eth1", "10.213.8.2/24")
    await_true(lambda: sandbox.log, "a line")
    world.ip("address", "add", "10.213.7.99/24", "dev", "eth0")
    await_true(lambda: sandbox.addresses("eth0") == ["10.213.7.2", "10.213.7.99"], "the address")
    send(world, "eth0", b"BZ still")
    assert sandbox.receives(b"BZ still")
    assert sandbox.log == [
        "a change of the container's network was not followed: this VMM cannot plug another NIC"
    ]


def test_an_interface_that_cannot_be_followed_is_one_line_and_the_rest_stays(world, sandbox):
    world.link("eth0", "10.213.7.2/24", mac="02:11:22:33:44:55")
    sandbox.attach()
    world.link("eth1", "10.213.8.2/24", mac="02:11:22:33:44:55")
    await_true(lambda: sandbox.log, "a line")
    send(world, "eth0", b"BZ still")
    assert sandbox.receives(b"BZ still")
    world.ip("link", "delete", "eth1")
    world.ip("address", "add", "10.213.7.99/24", "dev", "eth0")
    await_true(lambda: sandbox.addresses("eth0") == ["10.213.7.2", "10.213.7.99"], "what is right again")
    assert [line for line in sandbox.log if "both have the MAC address" in line] == sandbox.log[:1]


def test_a_guest_that_refuses_one_change_gets_the_next(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    sandbox.agent.error = RuntimeError("of a bug")
    world.ip("address", "add", "10.213.7.98/24", "dev", "eth0")
    await_true(lambda: sandbox.log, "a line")
    assert "internal error: RuntimeError: of a bug" in sandbox.log[0]
    world.ip("address", "add", "10.213.7.99/24", "dev", "eth0")
    await_true(lambda: sandbox.addresses("eth0")[1:] == ["10.213.7.98", "10.213.7.99"], "the addresses")


def test_an_interface_that_flaps_takes_one_nic_and_few_words_to_the_guest(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    batch = "link set eth0 mtu 1400\nlink set eth0 mtu 1500\n" * 500 + "link set eth0 mtu 1450\n"
    command = ["ip", "-n", world.inside, "-batch", "-"]
    subprocess.run(command, input=batch.encode(), timeout=120, check=True)
    await_true(lambda: sandbox.agent.interface().mtu == 1450, "the last MTU")
    assert len(sandbox.agent.told) < 100
    assert sandbox.log == []


def test_after_the_container_left_nobody_looks_any_more(world, sandbox):
    before = set(threading.enumerate())
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    watchers = set(threading.enumerate()) - before
    assert watchers
    sandbox.network.leave(sandbox.fd)
    for thread in watchers:
        thread.join(60)
    assert not any(thread.is_alive() for thread in watchers)


def test_a_tap_of_slirp4netns_is_reached_from_within_its_namespace(world, sandbox):
    world.ip("tuntap", "add", "tap0", "mode", "tap")
    world.ip("address", "add", "10.0.2.100/24", "dev", "tap0")
    world.ip("link", "set", "tap0", "up")
    sandbox.attach()
    assert socket.inet_aton("169.254.98.1") in [row.address for row in sandbox.agent.interface().neighbours]
    world.ip("link", "delete", "tap0")


def test_a_table_without_end_is_refused_and_not_kept(world, monkeypatch):
    world.link("eth0", "10.213.7.2/24")
    routes = "".join(f"route add 10.99.{n >> 8}.{n & 255}/32 dev eth0\n" for n in range(600))
    command = ["ip", "-n", world.inside, "-batch", "-"]
    subprocess.run(command, input=routes.encode(), timeout=120, check=True)
    fd = namespace.open_path(world.path)
    try:
        monkeypatch.setattr(netlink_module, "_MOST", 500)
        with pytest.raises(OSError, match="more than 500 entries of a kind"):
            namespace.inside(fd, lambda: interfaces.scan(4))
    finally:
        os.close(fd)


def test_a_watch_costs_two_descriptors_and_gives_them_back(world):
    fd = namespace.open_path(world.path)
    before = len(os.listdir("/proc/self/fd"))
    watch = namespace.inside(fd, Watch)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    watch.stop()
    watch.stop()
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(fd)


def test_a_watch_whose_socket_fails_says_so_and_may_be_stopped(world, monkeypatch, capfd):
    fd = namespace.open_path(world.path)
    watch = namespace.inside(fd, Watch)
    os.close(fd)
    before = set(threading.enumerate())

    def fail(timeout_s):
        raise OSError(5, "gone")

    monkeypatch.setattr(watch._netlink, "await_message", fail)
    world.link("eth0")
    watch.start(lambda: None)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert "changes of the network are not followed any more" in capfd.readouterr().err
    watch.stop()


def test_a_flood_that_nobody_hears_is_one_change_and_no_memory(world):
    world.link("eth0", "10.213.7.2/24")
    fd = namespace.open_path(world.path)
    calls, busy, go_on = [], threading.Event(), threading.Event()

    def changed():
        calls.append(1)
        busy.set()
        go_on.wait(120)

    watch = namespace.inside(fd, Watch)
    watch.start(changed)
    try:
        world.ip("link", "set", "eth0", "mtu", "1400")
        assert busy.wait(120)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        batch = "link set eth0 mtu 1400\nlink set eth0 mtu 1500\n" * 3000
        command = ["ip", "-n", world.inside, "-batch", "-"]
        subprocess.run(command, input=batch.encode(), timeout=120, check=True)
        go_on.set()
        await_true(lambda: len(calls) > 1, "to be told")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10
    finally:
        go_on.set()
        watch.stop()
        os.close(fd)


def message(**changes):
    values = {"nic": FIRST_MAC, "name": "eth0", "mac": bytes(6), "mtu": 1500, "up": True, **changes}
    return messages.Interface(**values)


def address(text, prefix=24):
    return messages.Address(local=socket.inet_aton(text), prefix=prefix)


def route(gateway, **more):
    rest = {"family": int(socket.AF_INET), "type": 1, "protocol": 3, **more}
    return messages.Route(gateway=socket.inet_aton(gateway), **rest)


def on_link(text):
    rest = {"family": int(socket.AF_INET), "type": 1, "protocol": 2, "scope": 253, "prefix": 24}
    return messages.Route(destination=socket.inet_aton(text), **rest)


def test_the_guest_changes_an_interface_in_place_and_connections_go_on(world):
    world.link("eth0")
    ip = world.ip
    old = message(addresses=[address("10.213.7.2"), address("10.213.7.3")], routes=[on_link("10.213.7.0")])
    new = message(
        mtu=1400,
        addresses=[address("10.213.7.3"), address("10.213.8.2")],
        routes=[on_link("10.213.7.0"), on_link("10.213.8.0"), route("10.213.8.1")],
        neighbours=[messages.Neighbour(address=socket.inet_aton("10.213.7.9"), mac=b"\2\1\1\1\1\1")],
    )
    fd = namespace.open_path(world.path)

    def work():
        with Netlink() as netlink:
            index = socket.if_nametoindex("eth0")
            guest_network.change(netlink, index, message(), old)
            here = ("10.213.7.3", 0)
            with (
                socket.create_server(here) as server,
                socket.create_connection(server.getsockname(), source_address=here) as one,
                server.accept()[0] as other,
            ):
                guest_network.change(netlink, index, old, new)
                one.sendall(b"still")
                assert select.select([other], [], [], 60)[0]
                assert other.recv(5) == b"still"

    try:
        namespace.inside(fd, work)
        shown = ip("address", "show", "eth0")
        assert "mtu 1400" in shown
        assert "10.213.7.2/" not in shown
        assert "10.213.7.3/24" in shown
        assert "10.213.8.2/24" in shown
        assert "default via 10.213.8.1" in ip("route")
        assert "10.213.7.9 dev eth0 lladdr 02:01:01:01:01:01" in ip("neighbour", "show", "nud", "permanent")
        namespace.inside(fd, lambda: _change(new, message(up=False, addresses=new.addresses)))
        assert "DOWN" in ip("link", "show", "eth0")
        namespace.inside(fd, lambda: _change(message(up=False, addresses=new.addresses), old))
        assert "10.213.7.0/24" in ip("route")
        assert "default" not in ip("route")
        assert "10.213.7.9" not in ip("neighbour", "show", "nud", "permanent")
    finally:
        os.close(fd)


def _change(old, new):
    with Netlink() as netlink:
        guest_network.change(netlink, socket.if_nametoindex("eth0"), old, new)
