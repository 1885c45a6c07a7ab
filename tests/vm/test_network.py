"""Interfaces of the container's network namespace in a real VM: taken over as they are, and given back."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from vm.leftovers import Watch
from vm.netns import World, ip
from vm.verbs import Runtime, await_end, await_true, bundle, config, kill, write_config

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun"),
    pytest.mark.skipif(not shutil.which("tc"), reason="iproute2 is not installed"),
]

BULK = 64 << 20
#: a gibibyte takes minutes under emulation
GIB = os.environ.get("BUFFERZONE_GIB") == "1"
BIG = 1 << 30
CONNECTIONS = 1000
RAW = ["CAP_NET_RAW", "CAP_NET_BIND_SERVICE"]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    runtime = Runtime(tmp_path_factory.mktemp("network") / "root")
    watch = Watch(runtime.root)
    yield runtime
    runtime.close()
    watch.assert_nothing_left()


@pytest.fixture
def world():
    with World() as world:
        yield world


@pytest.fixture
def one(world):
    """A namespace with one interface, IPv4 and IPv6, and default routes."""
    world.link("eth0", "10.213.7.2/24", "fd13:7::2/64")
    world.ip("route", "add", "default", "via", "10.213.7.1", "metric", "7")
    world.ip("-6", "route", "add", "default", "via", "fd13:7::1")
    return world


def made(directory: Path, command: str, world: World) -> Path:
    """A bundle in the world's namespace, whose container may ping."""
    process = config(command)["process"]
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), RAW)
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    return bundle(directory / "bundle", process=process, linux=world.linux(), mounts=mounts)


def output(runtime: Runtime, directory: Path, command: str, world: World) -> str:
    """What `command` prints in a container of the world's namespace; nothing of it is left inside."""
    container = runtime.run("c", made(directory, command, world))
    try:
        text = container.output(120)
        assert container.wait() == 0, text + container.errors()
    finally:
        runtime.verb("delete", "--force", "c")
    assert world.left() == []
    return text


def refused(runtime: Runtime, directory: Path, world: World) -> str:
    """The one line with which `start` refuses; nothing is left inside."""
    runtime.create("c", made(directory, "true", world))
    try:
        result = runtime.verb("start", "c")
        assert result.status == 1
        line = result.line
        assert runtime.verb("start", "c").line == line, "it says so again"
    finally:
        runtime.ok("delete", "--force", "c")
    assert world.left() == []
    return line


def test_an_interface_is_in_the_vm_what_it_is_in_the_namespace(runtime, one, tmp_path):
    mac = "02:11:22:33:44:55"
    one.ip("link", "set", "eth0", "address", mac)
    one.ip("route", "add", "10.99.0.0/16", "via", "10.213.7.9")
    one.ip(
        "neighbour", "add", "10.213.7.77", "lladdr", "02:00:00:00:00:77", "nud", "permanent", "dev", "eth0"
    )
    text = output(
        runtime, tmp_path, "busybox ip address; busybox ip route; busybox ip -6 route; cat /proc/net/arp", one
    )
    for part in (
        mac,
        "inet 10.213.7.2/24",
        "inet6 fd13:7::2/64",
        "default via 10.213.7.1 dev eth0  metric 7",
        "10.99.0.0/16 via 10.213.7.9 dev eth0",
        "default via fd13:7::1 dev eth0",
        "02:00:00:00:00:77",
    ):
        assert part in text
    assert text.count("02:00:00:00:00:77") == 1
    assert "tentative" not in text


def test_a_container_without_a_network_sees_lo_alone(runtime, world, tmp_path):
    assert output(runtime, tmp_path, "ls /sys/class/net", world) == "lo\n"


def test_packets_go_both_ways_with_ipv4_and_ipv6(runtime, one, tmp_path):
    text = output(runtime, tmp_path, "busybox ping -c 2 10.213.7.1 && busybox ping -c 2 fd13:7::1", one)
    assert text.count("2 packets received") == 2


def test_two_interfaces_keep_their_names_whatever_the_order(runtime, world, tmp_path):
    world.link("eth1", "10.213.8.2/24")
    world.link("eth0", "10.213.7.2/24", mtu=9000)
    script = (
        "busybox ip link; busybox ping -c 1 10.213.7.1 && busybox ping -c 1 10.213.8.1; ls /sys/class/net"
    )
    text = output(runtime, tmp_path, script, world)
    assert text.count("1 packets received") == 2
    assert "eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 9000" in text
    assert "eth1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500" in text
    assert text.endswith("eth0\neth1\nlo\n")


def test_as_many_as_fit_and_no_more(runtime, world, tmp_path):
    for number in range(4):
        world.link(f"eth{number}", f"10.213.{number}.2/24")
    pings = " && ".join(f"busybox ping -c 1 10.213.{number}.1" for number in range(4))
    assert output(runtime, tmp_path / "a", pings, world).count("1 packets received") == 4
    world.link("eth4", "10.213.4.2/24")
    line = refused(runtime, tmp_path / "b", world)
    assert "too many interfaces for a VM: eth0, eth1, eth2, eth3, eth4: at most 4" in line


def test_a_nic_that_comes_between_create_and_start_is_there(runtime, world, tmp_path):
    script = "busybox ip address; busybox ping -c 1 10.213.7.1; busybox ping -c 1 10.213.8.1"
    directory = made(tmp_path, script, world)
    world.link("eth0", "10.213.7.2/24")
    container = runtime.create("c", directory)
    await_true(lambda: "bufferzone eth0" in world.ip("link"), "the first interface wired")
    world.link("eth1", "10.213.8.2/24")
    world.ip("address", "add", "10.213.7.99/24", "dev", "eth0")
    runtime.ok("start", "c")
    text = container.output(60)
    runtime.ok("delete", "--force", "c")
    assert text.count("1 packets received") == 2
    assert "10.213.7.99/24" in text
    assert world.left() == []


def test_what_happens_to_interfaces_between_create_and_start_is_followed(runtime, world, tmp_path):
    pings = "".join(f"; busybox ping -c 1 10.213.{number}.1" for number in (7, 9))
    directory = made(tmp_path, f"busybox ip address; ls /sys/class/net{pings}", world)
    for number, name in ((7, "veth7"), (8, "eth1"), (6, "eth2")):
        world.link(name, f"10.213.{number}.2/24")
    container = runtime.create("c", directory)
    await_true(lambda: "bufferzone eth2" in world.ip("link"), "the head start")
    world.ip("link", "set", "veth7", "down")
    world.ip("link", "set", "veth7", "name", "eth0", "mtu", "4000", "address", "02:11:22:33:44:77")
    world.ip("link", "set", "eth0", "up")
    world.ip("link", "delete", "eth1")
    world.link("eth1", "10.213.9.2/24")
    world.ip("link", "delete", "eth2")
    runtime.ok("start", "c")
    text = container.output(60)
    runtime.ok("delete", "--force", "c")
    assert "eth0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 4000" in text
    assert "02:11:22:33:44:77" in text
    assert "\neth0\neth1\nlo\n" in text
    assert text.count("1 packets received") == 2
    assert world.left() == []


def test_a_nic_for_the_pid_of_a_container_with_a_namespace_of_its_own(runtime, world, tmp_path):
    directory = made(tmp_path, "busybox ping -c 1 10.213.7.1", world)
    value = config("busybox ping -c 1 10.213.7.1")
    value["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), RAW)
    write_config(directory, value)
    container = runtime.create("c", directory)
    world.link("eth0", "10.213.7.2/24", into=str(container.pid))
    name = f"{world.inside}p"
    ip("netns", "attach", name, container.pid)
    try:
        ip("-n", name, "address", "add", "10.213.7.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
    finally:
        ip("netns", "del", name)
    runtime.ok("start", "c")
    text = container.output(60)
    runtime.ok("delete", "--force", "c")
    assert "1 packets received" in text


def test_large_packets_pass_undivided(runtime, world, tmp_path):
    world.link("eth0", "10.213.7.2/24", mtu=9000)
    text = output(
        runtime, tmp_path, "busybox ping -c 2 -s 8900 10.213.7.1; cat /sys/class/net/eth0/mtu", world
    )
    assert "2 packets received" in text
    assert text.endswith("9000\n")


def test_the_largest_packets_that_a_tap_carries(runtime, world, tmp_path):
    world.link("eth0", "10.213.7.2/24", mtu=65521)
    text = output(runtime, tmp_path, "busybox ping -c 2 -s 65000 10.213.7.1", world)
    assert "2 packets received" in text


def test_a_thousand_short_connections(runtime, one, tmp_path):
    directory = made(tmp_path, "cd /srv; echo up; exec busybox httpd -f -p 80", one)
    (directory / "rootfs" / "srv").mkdir()
    (directory / "rootfs" / "srv" / "page").write_text("it is me\n")
    container = runtime.run("c", directory)
    try:
        container.expect("up")
        _patient(one, "10.213.7.2", 80)
        for _ in range(CONNECTIONS):
            with one.connect("10.213.7.2", 80) as sock:
                sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
                assert b"it is me\n" in _all_of(sock)
    finally:
        runtime.ok("delete", "--force", "c")
    assert one.left() == []


def test_a_bulk_transfer_arrives_as_it_was_sent_and_comes_back(runtime, one, tmp_path):
    data = os.urandom(1 << 20) * (BULK >> 20)
    server = one.listen("10.213.7.1")
    port = server.getsockname()[1]
    script = "busybox nc -l -p 5000 > /tmp/data; busybox sha256sum /tmp/data; "
    script += f"busybox nc 10.213.7.1 {port} < /tmp/data"
    container = runtime.run("c", made(tmp_path, f"echo up; {script}", one))
    try:
        container.expect("up")
        with _patient(one, "10.213.7.2", 5000) as sock:
            sock.sendall(data)
        container.expect(hashlib.sha256(data).hexdigest(), 120)
        server.settimeout(60)
        back, _ = server.accept()
        with back:
            back.settimeout(120)
            assert hashlib.sha256(_all_of(back)).digest() == hashlib.sha256(data).digest()
    finally:
        runtime.ok("delete", "--force", "c")


@pytest.mark.skipif(not GIB, reason="takes minutes: BUFFERZONE_GIB=1")
def test_a_gibibyte_each_way(runtime, one, tmp_path, capsys):
    script = "echo up; busybox httpd -p 80 -h /srv; busybox nc -l -p 5000 | busybox sha256sum"
    directory = made(tmp_path, script, one)
    (directory / "rootfs" / "srv").mkdir()
    with open(directory / "rootfs" / "srv" / "zeros", "wb") as file:
        file.truncate(BIG)
    container = runtime.run("c", directory)
    block = os.urandom(1 << 20)
    try:
        container.expect("up")
        with _patient(one, "10.213.7.2", 80) as sock:  # not by nc, which writes 1 KiB at a time
            began = time.monotonic()
            sock.sendall(b"GET /zeros HTTP/1.0\r\n\r\n")
            body = _all_of(sock).partition(b"\r\n\r\n")[2]
        out_s = time.monotonic() - began
        assert len(body) == BIG
        assert hashlib.sha256(body).digest() == hashlib.sha256(bytes(BIG)).digest()
        with _patient(one, "10.213.7.2", 5000) as sock:
            began = time.monotonic()
            for _ in range(BIG >> 20):
                sock.sendall(block)
        container.expect(hashlib.sha256(block * (BIG >> 20)).hexdigest(), 300)
        in_s = time.monotonic() - began
    finally:
        runtime.ok("delete", "--force", "c")
    mib = BIG >> 20
    with capsys.disabled():
        print(f"\nfrom the VM {mib / out_s:.1f} MiB/s, to it and through sha256sum {mib / in_s:.1f} MiB/s")


def _patient(world: World, address: str, port: int) -> socket.socket:
    """A connection to a listener that comes up at that moment."""

    def try_it() -> socket.socket | None:
        try:
            return world.connect(address, port)
        except ConnectionRefusedError:
            return None

    found = await_true(try_it, f"a listener on port {port}")
    assert isinstance(found, socket.socket)
    return found


def _all_of(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_what_a_vm_cannot_take_over_is_one_line(runtime, world, tmp_path):
    world.link("eth0", "10.213.7.2/24", mac="02:11:22:33:44:55")
    world.link("eth1", "10.213.8.2/24", mac="02:11:22:33:44:55")
    line = refused(runtime, tmp_path / "mac", world)
    assert "c: interfaces eth0 and eth1: both have the MAC address 02:11:22:33:44:55" in line
    world.ip("link", "set", "eth1", "address", "02:11:22:33:44:56")
    world.ip("address", "add", "10.213.7.2/32", "dev", "eth1")
    line = refused(runtime, tmp_path / "address", world)
    assert "interfaces eth0 and eth1: both have the address 10.213.7.2" in line
    world.ip("link", "delete", "eth1")
    world.ip("link", "set", "eth0", "mtu", "65535")
    line = refused(runtime, tmp_path / "mtu", world)
    assert "interface eth0: MTU 65535: a VM's NIC carries at most 65521" in line


def test_a_machine_without_tap_devices_is_one_line_and_a_container_without_a_network_runs(tmp_path, world):
    (tmp_path / "empty").mkdir()
    hide = f'mount --bind {tmp_path / "empty"} /dev/net && exec "$@"'
    poor = Runtime(tmp_path / "root", ("unshare", "--mount", "sh", "-c", hide, "hide"))
    try:
        assert output(poor, tmp_path / "none", "ls /sys/class/net", world) == "lo\n"
        world.link("eth0", "10.213.7.2/24")
        line = refused(poor, tmp_path / "one", world)
        assert "c: the VM has no NIC for eth0: /dev/net/tun cannot be used (hint: modprobe tun" in line
    finally:
        poor.close()


def test_a_namespace_that_a_vm_of_another_root_uses_is_left_to_it(runtime, one, tmp_path):
    first = runtime.run("first", made(tmp_path / "a", "exec sleep 1000", one))
    other = Runtime(tmp_path / "other")
    try:
        line = other.try_create("second", made(tmp_path / "b", "true", one)).line
        assert "its network namespace is already used by another VM" in line
        assert not (other.root / "second").exists()
        ping = runtime.ok("exec", "first", "/bin/busybox", "ping", "-c", "2", "10.213.7.1")
        assert "2 packets received" in ping.out
    finally:
        other.close()
        runtime.ok("delete", "--force", "first")
    assert first.wait() == 137
    assert one.left() == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/run/netns/none-such", "no such file or directory"), ("/etc/passwd", "not a network namespace")],
)
def test_a_namespace_that_is_none_is_one_line_and_nothing_is_made(runtime, world, tmp_path, path, reason):
    directory = made(tmp_path, "true", world)
    text = (directory / "config.json").read_text().replace(world.path, path)
    (directory / "config.json").write_text(text)
    result = runtime.try_create("c", directory)
    assert result.status == 1
    assert f"config.json: linux.namespaces[4].path: {reason}: {path}" in result.line
    assert not (runtime.root / "c").exists()


@pytest.mark.parametrize("path", [None, "/proc/self/ns/net"])
def test_the_hosts_network_is_refused(runtime, world, tmp_path, path):
    directory = made(tmp_path, "true", world)
    value = config("true")
    kinds = [entry for entry in value["linux"]["namespaces"] if entry["type"] != "network"]
    value["linux"]["namespaces"] = kinds + ([{"type": "network", "path": path}] if path else [])
    write_config(directory, value)
    result = runtime.try_create("c", directory)
    assert result.status == 1
    assert "a VM cannot use the host's network" in result.line
    assert not (runtime.root / "c").exists()


def test_what_a_killed_shim_leaves_in_a_namespace_goes_with_delete(runtime, one, tmp_path):
    container = runtime.run("c", made(tmp_path / "a", "exec sleep 1000", one))
    kill(runtime.shim_pid("c"))
    assert container.wait() == 137
    assert [line for line in one.left() if "ingress" in line], "nothing to clean up: the test is of no use"
    runtime.ok("delete", "--force", "c")
    assert one.left() == []
    assert "2 packets received" in output(runtime, tmp_path / "b", "busybox ping -c 2 10.213.7.1", one)


def test_a_namespace_with_the_leftovers_of_a_killed_shim_can_be_used_at_once(runtime, one, tmp_path):
    container = runtime.run("killed", made(tmp_path / "a", "exec sleep 1000", one))
    pids = runtime.helper_pids("killed")
    kill(runtime.shim_pid("killed"))
    assert container.wait() == 137
    await_end(pids["qemu"])
    runtime.run("new", made(tmp_path / "b", "exec sleep 1000", one))
    runtime.ok("delete", "--force", "killed")  # which must not take the wire of the new one
    ping = runtime.ok("exec", "new", "/bin/busybox", "ping", "-c", "2", "10.213.7.1")
    runtime.ok("delete", "--force", "new")
    assert "2 packets received" in ping.out
    assert one.left() == []


def test_start_twice_in_a_row_in_one_namespace(runtime, one, tmp_path):
    for number in range(2):
        text = output(runtime, tmp_path / str(number), "busybox ping -c 1 10.213.7.1", one)
        assert "1 packets received" in text
