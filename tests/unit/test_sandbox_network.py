"""When a sandbox takes interfaces over: the head start after create, and what counts, at start. No VM: the
other end of the tap is ours, the guest's agent is a list.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import threading
import types

import pytest

from bufferzone import egress, state
from bufferzone.errors import HostError, VmmError
from bufferzone.network import namespace, tcfilter
from bufferzone.sandbox import network as network_module
from bufferzone.sandbox.network import TapNetwork
from bufferzone.vm import leftovers
from bufferzone.vm.leftovers import Leftovers
from bufferzone.wire.network import FIRST_MAC
from unit import egress_world
from vm.netns import World

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun"),
]


class Agent:
    """The guest: what it was told, and an error for the next call."""

    def __init__(self):
        self.told, self.error = [], None

    def call(self, method, request, reply):
        assert method == "SetNetwork"
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.told.append(request)

    def interface(self):
        """The one interface that it has now."""
        (found,) = self.told[-1].interfaces
        return found


class Sandbox:
    """A network whose VM is this test: frames come and go by `tap`."""

    def __init__(self, world, directory, rules=None):
        tap = tcfilter.park()
        self.tap, self.agent = os.dup(tap.fd), Agent()
        os.set_blocking(self.tap, False)
        left = Leftovers(str(directory))
        self.network = TapNetwork(tap, None, self.agent, left.add_network, rules)
        self.path = world.path
        self.fd = namespace.open_path(world.path)

    def prepare(self):
        """The head start, to its end."""
        before = set(threading.enumerate())
        self.network.prepare(self.fd, self.path)
        for thread in set(threading.enumerate()) - before:
            thread.join()

    def attach(self):
        self.network.attach(self.fd, self.path)

    def receives(self, marker, timeout_s=20.0):
        """Whether a frame with the marker comes to the guest."""
        while select.select([self.tap], [], [], timeout_s)[0]:
            if marker in os.read(self.tap, 1 << 17):
                return True
        return False

    def close(self):
        self.network.close()
        os.close(self.fd)
        os.close(self.tap)


@pytest.fixture
def world():
    with World() as world:
        yield world


@pytest.fixture
def sandbox(world, tmp_path):
    sandbox = Sandbox(world, tmp_path)
    yield sandbox
    sandbox.close()
    assert world.left() == []


def send(world, device, marker):
    """A frame from outside, to the wire of that device."""
    fd = namespace.open_path(f"/run/netns/{world.outside}")
    try:
        with namespace.inside(fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind((f"o{device}", 0))
            sock.send(b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x88\xb5" + marker)
    finally:
        os.close(fd)


def test_what_went_wrong_before_the_start_is_forgotten(world, sandbox):
    world.link("eth0", "10.213.7.2/24", mac="02:11:22:33:44:55")
    world.link("eth1", "10.213.7.3/24", mac="02:11:22:33:44:55")
    sandbox.prepare()
    with pytest.raises(HostError, match="both have the MAC"):
        sandbox.attach()
    assert world.left() == []
    world.ip("link", "delete", "eth1")
    sandbox.attach()
    assert sandbox.agent.interface().name == "eth0"
    send(world, "eth0", b"BZ once more")
    assert sandbox.receives(b"BZ once more")


@pytest.mark.parametrize(("code", "told"), [("agent-timeout", True), ("agent-lost", False)])
def test_a_network_that_a_living_guest_does_not_take_back_fails_the_checkpoint(world, sandbox, code, told):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    try:
        with sandbox.network.withdrawn():
            assert sandbox.agent.told[-1].interfaces == []
            sandbox.agent.error = VmmError("no answer", code=code)
    except VmmError:
        assert told
    else:
        assert not told


def test_a_guest_that_refuses_once_is_asked_again(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.agent.error = HostError("no", code="x")
    sandbox.prepare()
    assert world.left() == []
    sandbox.attach()
    assert sandbox.agent.interface().name == "eth0"


@pytest.mark.parametrize("early", [True, False])
def test_an_interface_renamed_before_the_start_is_followed(world, sandbox, early):
    world.link("veth1a2b", "10.213.7.2/24")
    if early:
        sandbox.prepare()
        assert sandbox.agent.interface().name == "veth1a2b"
    world.ip("link", "set", "veth1a2b", "down")
    world.ip("link", "set", "veth1a2b", "name", "eth0")
    world.ip("link", "set", "eth0", "up")
    sandbox.attach()
    assert sandbox.agent.interface().name == "eth0"
    send(world, "veth1a2b", b"BZ renamed")
    assert sandbox.receives(b"BZ renamed")


def test_an_interface_replaced_before_the_start_is_the_new_one(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.prepare()
    world.ip("link", "delete", "eth0")
    world.link("eth0", "10.213.9.2/24", mac="02:11:22:33:44:66")
    sandbox.attach()
    found = sandbox.agent.interface()
    assert (found.nic, found.mac.hex(":")) == (FIRST_MAC, "02:11:22:33:44:66")
    assert socket.inet_aton("10.213.9.2") in [row.local for row in found.addresses]
    send(world, "eth0", b"BZ replaced")
    assert sandbox.receives(b"BZ replaced")


def test_an_interface_taken_away_before_the_start_is_no_more(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.prepare()
    assert world.left()
    world.ip("link", "delete", "eth0")
    sandbox.attach()
    assert sandbox.agent.told[-1].interfaces == []
    assert world.left() == []


def test_whatever_changes_before_the_start_is_seen(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.prepare()
    world.ip("link", "set", "eth0", "mtu", "4000", "address", "02:11:22:33:44:77")
    world.ip("address", "add", "10.213.7.99/24", "dev", "eth0")
    world.ip("route", "add", "10.99.0.0/16", "via", "10.213.7.9")
    entry = ("lladdr", "02:00:00:00:00:77", "nud", "permanent", "dev", "eth0")
    world.ip("neighbour", "add", "10.213.7.77", *entry)
    sandbox.attach()
    found = sandbox.agent.interface()
    assert (found.mtu, found.mac.hex(":")) == (4000, "02:11:22:33:44:77")
    assert socket.inet_aton("10.213.7.99") in [row.local for row in found.addresses]
    assert socket.inet_aton("10.99.0.0") in [row.destination for row in found.routes]
    assert [row.mac.hex(":") for row in found.neighbours] == ["02:00:00:00:00:77"]
    (tap,) = [line for line in world.left() if line.startswith("tap ")]
    assert "mtu 4000" in tap


@pytest.mark.parametrize("missing", ["up", "address"])
def test_an_interface_that_is_not_ready_waits_for_the_start(world, sandbox, missing):
    world.link("eth0", *(["10.213.7.2/24"] if missing == "up" else []))
    if missing == "up":
        world.ip("link", "set", "eth0", "down")
    sandbox.prepare()
    assert (sandbox.agent.told, world.left()) == ([], [])
    sandbox.attach()
    assert sandbox.agent.interface().up == (missing != "up")


def test_a_container_that_goes_before_the_head_start_began_gets_nothing(world, sandbox, monkeypatch):
    late = []

    class Late(threading.Thread):
        def start(self):
            late.append(self)

    module = types.SimpleNamespace(Thread=Late, current_thread=threading.current_thread)
    monkeypatch.setattr(network_module, "threading", module)
    world.link("eth0", "10.213.7.2/24")
    sandbox.prepare()
    sandbox.network.leave(sandbox.fd)
    (thread,) = late
    threading.Thread.start(thread)
    thread.join()
    assert (sandbox.agent.told, world.left()) == ([], [])


def test_who_comes_after_one_that_left_has_a_network_too(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    sandbox.network.leave(sandbox.fd)
    assert world.left() == []
    sandbox.attach()
    send(world, "eth0", b"BZ second")
    assert sandbox.receives(b"BZ second")


def test_whoever_runs_on_a_network_keeps_it_when_another_cannot_start(world, sandbox):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    for number in range(1, 5):
        world.link(f"eth{number}", f"10.213.{number}.2/24")
    sandbox.prepare()
    with pytest.raises(HostError, match="too many interfaces"):
        sandbox.attach()
    send(world, "eth0", b"BZ still")
    assert sandbox.receives(b"BZ still")


@pytest.fixture(params=["open", "gated"])
def killed(request, world, tmp_path):
    """A sandbox whose shim was killed, before the kernel has taken down what belonged to it."""
    rules = None
    if request.param == "gated":
        egress_world.need_what_it_takes()
        rules = egress.policy(["none"])
    (tmp_path / "killed").mkdir()
    sandbox = Sandbox(world, tmp_path / "killed", rules)
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    assert any("ingress" in line for line in world.left())
    yield sandbox
    sandbox.close()


def test_a_clean_up_takes_what_was_recorded_by_name(world, killed, tmp_path):
    assert leftovers.clean(str(tmp_path / "killed")) == []
    assert world.left() == []
    assert ": bz" not in world.ip("-o", "link")


def test_a_clean_up_finds_traffic_control_at_an_interface_renamed_since(world, killed, tmp_path):
    world.ip("link", "set", "eth0", "down")
    world.ip("link", "set", "eth0", "name", "other")
    assert leftovers.clean(str(tmp_path / "killed")) == []
    assert world.left() == []


def test_a_clean_up_leaves_another_vm_its_interface(world, killed, tmp_path):
    record = state.read_leftovers(str(tmp_path / "killed"))
    killed.network.part()
    (tmp_path / "new").mkdir()
    new = Sandbox(world, tmp_path / "new")
    try:
        new.attach()
        state.write_leftovers(str(tmp_path / "killed"), record)
        assert leftovers.clean(str(tmp_path / "killed")) == []
        send(world, "eth0", b"BZ mine")
        assert new.receives(b"BZ mine")
    finally:
        new.close()


def fails(error):
    def call(*_):
        raise error

    return call


@pytest.mark.parametrize(("number", "told"), [(errno.EPERM, True), (errno.ENODEV, False)])
def test_traffic_control_that_is_left_behind_is_told_unless_the_network_goes(
    sandbox, world, monkeypatch, capfd, number, told
):
    world.link("eth0", "10.213.7.2/24")
    sandbox.attach()
    real = sandbox.network._nics.part
    monkeypatch.setattr(sandbox.network._nics, "part", fails(OSError(number, os.strerror(number))))
    sandbox.network.part()
    assert ("traffic control stays in the container's network namespace" in capfd.readouterr().err) == told
    real(sandbox.fd)


def test_counters_that_cannot_be_read_are_the_last_known_and_the_policy_is_still_there(
    world, tmp_path, monkeypatch
):
    sandbox = Sandbox(world, tmp_path, rules=())
    nics = sandbox.network._nics
    monkeypatch.setattr(nics, "refused", fails(HostError("nft: no", code="nft")))
    assert sandbox.network.refused() == {"denied": 0, "forged": 0}
    monkeypatch.setattr(nics, "refused", lambda: {"denied": 3, "forged": 1})
    assert sandbox.network.refused() == {"denied": 3, "forged": 1}
    monkeypatch.setattr(nics, "refused", fails(OSError(errno.ENODEV, "gone")))
    assert sandbox.network.refused() == {"denied": 3, "forged": 1}
    sandbox.close()
