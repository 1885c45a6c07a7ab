"""Network namespaces of the real kernel: what is found there, how it is joined with a tap, and parted."""

import os
import shutil
import subprocess
import threading

import pytest

from bufferzone.config import Settings
from bufferzone.errors import HostError, SpecError
from bufferzone.guest import network as guest_network
from bufferzone.linux import rtnetlink
from bufferzone.linux.netlink import Netlink, attribute, attributes, number
from bufferzone.network import interfaces, namespace, tc, tcfilter
from bufferzone.oci import host
from bufferzone.sandbox.network import namespace_of
from bufferzone.wire import network as messages

NAME = f"bzu{os.getpid()}"
real = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2: network namespaces"
)
taps = pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun")


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, timeout=120, capture_output=True)


@pytest.fixture
def netns():
    ip("netns", "add", NAME)
    fd = namespace.open_path(f"/run/netns/{NAME}")
    yield fd
    os.close(fd)
    ip("netns", "del", NAME)


def veth(name, *addresses, peer=""):
    ip("-n", NAME, "link", "add", name, "type", "veth", "peer", "name", peer or f"p{name}", "netns", NAME)
    for address in addresses:
        ip("-n", NAME, "address", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))
    ip("-n", NAME, "link", "set", name, "up")


def scan(fd, most=4):
    return namespace.inside(fd, lambda: interfaces.scan(most))


def test_attributes_are_read_as_they_are_written():
    data = attribute(1, b"abcde") + number(2, 7) + attribute(0x8003, b"")
    assert attributes(data) == {1: b"abcde", 2: b"\7\0\0\0", 3: b""}


@pytest.mark.parametrize("data", [b"\0", b"\xff\xff\1\0", b"\3\0\1\0", b"\4\0\1"])
def test_bytes_that_are_no_attributes_are_none(data):
    assert attributes(data) == {}


def test_a_record_is_frozen_and_knows_its_fields():
    one = rtnetlink.Address(local=b"\x0a\0\0\1", prefix=24)
    assert one == rtnetlink.Address(local=b"\x0a\0\0\1", prefix=24)
    assert one.broadcast == b""
    with pytest.raises(AttributeError):
        one.prefix = 8
    with pytest.raises(TypeError, match="Address has no 'nonsense'"):
        rtnetlink.Address(nonsense=1)


@real
def test_an_error_of_the_kernel_has_its_number(netns):
    def work():
        with Netlink() as netlink:
            rtnetlink.set_link(netlink, 4711, up=True)

    with pytest.raises(OSError, match="No such device") as caught:
        namespace.inside(netns, work)
    assert caught.value.errno == 19


@real
def test_a_scan_tells_addresses_routes_and_neighbours_of_each_interface(netns):
    assert scan(netns) == ()
    veth("eth0", "10.9.8.7/24", "fd09::7/64")
    ip("-n", NAME, "link", "set", "peth0", "up")
    ip("-n", NAME, "route", "add", "default", "via", "10.9.8.1", "metric", "5", "src", "10.9.8.7")
    ip("-n", NAME, "neighbour", "add", "10.9.8.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0")
    (eth0,) = [found for found in scan(netns) if found.name == "eth0"]
    assert eth0.up
    assert eth0.mtu == 1500
    locals_ = {address.local.hex(): address for address in eth0.addresses}
    assert locals_["0a090807"].prefix == 24
    assert len([key for key in locals_ if len(key) == 32]) == 2  # ours and the link-local one
    (default,) = [route for route in eth0.routes if not route.destination]
    assert (default.gateway, default.metric, default.source) == (b"\x0a\x09\x08\1", 5, b"\x0a\x09\x08\7")
    assert [(n.address, n.mac.hex(":")) for n in eth0.neighbours] == [
        (b"\x0a\x09\x08\1", "02:00:00:00:00:01")
    ]


@real
def test_routes_of_two_interfaces_to_one_destination_stand_side_by_side(netns):
    veth("eth0", "10.9.8.7/24", peer="eth1")
    ip("-n", NAME, "link", "set", "eth1", "up")
    indexes = [interface.index for interface in scan(netns)]
    four = rtnetlink.Route(family=2, destination=b"\x0a\7\7\0", prefix=24, scope=253, type=1, protocol=4)
    six = rtnetlink.Route(
        family=10, destination=b"\xfd\7" + bytes(14), prefix=64, metric=9, type=1, protocol=4
    )

    def work():
        with Netlink() as netlink:
            for route in (four, six):
                for index in (*indexes, *indexes):
                    rtnetlink.add_route(netlink, index, route)
            found = rtnetlink.routes(netlink)
            return [
                sorted(row.index for row in found if row.destination == route.destination)
                for route in (four, six)
            ]

    assert namespace.inside(netns, work) == [sorted(indexes)] * 2


@real
def test_what_a_vm_cannot_show_is_refused(netns):
    veth("eth0", "10.9.8.7/24", peer="eth1")
    with pytest.raises(HostError, match="too many interfaces for a VM: eth1, eth0: at most 1"):
        scan(netns, 1)
    ip("-n", NAME, "address", "add", "10.9.8.7/32", "dev", "eth1")
    with pytest.raises(HostError, match=r"both have the address 10\.9\.8\.7"):
        scan(netns)
    ip("-n", NAME, "link", "set", "eth1", "mtu", "65535")
    with pytest.raises(HostError, match="interface eth1: MTU 65535"):
        scan(netns)


@real
@taps
def test_a_parked_tap_moves_and_is_joined_once(netns):
    parked = tcfilter.park()
    try:
        veth("eth0", "10.9.8.7/24")
        tcfilter.move(parked.namespace_fd, netns, "bzt.0", 9000)
        namespace.inside(netns, lambda: tcfilter.join("eth0", "bzt.0"))
        other = tcfilter.park()
        tcfilter.move(other.namespace_fd, netns, "bzu.0", 9000)
        with pytest.raises(HostError, match="eth0: already used by another VM"):
            namespace.inside(netns, lambda: tcfilter.join("eth0", "bzu.0"))
        names = [found.name for found in scan(netns)]
        assert "bzt.0" not in names
        assert "bzu.0" not in names

        def priorities():
            with Netlink() as netlink:
                links = {link.name: link for link in rtnetlink.links(netlink)}
                assert links["bzt.0"].mtu == 9000
                return [tc.priorities(netlink, links[name].index) for name in ("eth0", "bzt.0")]

        assert namespace.inside(netns, priorities) == [{tc.OURS}, {tc.OURS}]
        away = {"bzu.0": (other.namespace_fd, tcfilter.PARKED)}
        namespace.inside(netns, lambda: tcfilter.part(away))  # another VM's
        assert namespace.inside(netns, priorities) == [{tc.OURS}, {tc.OURS}]
        namespace.inside(netns, lambda: tcfilter.part({"bzt.0": (parked.namespace_fd, tcfilter.PARKED)}))
        veth("eth1")
        tcfilter.move(parked.namespace_fd, netns, "bzt.0", 9000)
        assert namespace.inside(netns, priorities)[0] == set()
    finally:
        for tap in (parked, other):
            os.close(tap.fd)
            os.close(tap.namespace_fd)


@real
@taps
def test_traffic_control_of_somebody_else_is_left_alone(netns):
    veth("eth0", "10.9.8.7/24")
    for words in (["qdisc", "add", "dev", "eth0", "ingress"],
                  ["filter", "add", "dev", "eth0", "parent", "ffff:", "prio", "5", "u32", "match", "u32",
                   "0", "0", "flowid", "1:1"]):  # fmt: skip
        subprocess.run(["tc", "-n", NAME, *words], check=True, timeout=120)
    parked = tcfilter.park()
    try:
        tcfilter.move(parked.namespace_fd, netns, "bzt.1", 1500)
        with pytest.raises(HostError, match="eth0: it has traffic control of its own"):
            namespace.inside(netns, lambda: tcfilter.join("eth0", "bzt.1"))
        namespace.inside(netns, lambda: tcfilter.clear(["bzt.1"]))
        shown = subprocess.run(["tc", "-n", NAME, "qdisc"], capture_output=True, text=True, check=True)
        assert "ingress" in shown.stdout
    finally:
        os.close(parked.fd)
        os.close(parked.namespace_fd)


@real
def test_the_far_end_of_a_gate_that_is_on_its_way_out_is_awaited(netns):
    veth("eth0", "10.9.8.7/24")
    veth("bzt.0")  # as an egress bridge's: its shim was killed, and the kernel has not taken it down yet
    veth("bzt.1")
    namespace.inside(netns, lambda: tcfilter.join("eth0", "bzt.0"))
    failures = []

    def join():
        try:
            namespace.inside(netns, lambda: tcfilter.join("eth0", "bzt.1"))
        except HostError as error:
            failures.append(error)

    thread = threading.Thread(target=join)
    thread.start()
    ip("-n", NAME, "link", "delete", "bzt.0")
    thread.join()
    assert failures == []
    assert "bzt.1" in namespace.inside(netns, tcfilter.joined).values()


@real
def test_work_in_another_namespace_leaves_us_where_we_are(netns):
    before = os.stat("/proc/self/ns/net").st_ino
    seen = namespace.inside(netns, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert seen == os.fstat(netns).st_ino != before
    assert os.stat("/proc/self/ns/net").st_ino == before
    with pytest.raises(ZeroDivisionError):
        namespace.inside(netns, lambda: 1 // 0)


def interface(**changes):
    values = {"nic": messages.FIRST_MAC, "name": "eth0", "mac": bytes(6), "mtu": 1500, "up": True, **changes}
    return messages.Interface(**values)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a" * 16},
        {"name": "../../x"},
        {"name": "a b"},
        {"mac": b"short"},
        {"addresses": [messages.Address(local=b"12345")]},
        {"routes": [messages.Route(family=2, gateway=b"1")]},
        {"neighbours": [messages.Neighbour(address=bytes(4), mac=b"")]},
        {"addresses": [messages.Address(local=bytes(4))] * (messages.MOST_ROWS + 1)},
    ],
)
def test_the_guest_refuses_what_is_no_interface(wrong):
    guest_network.check([interface()])
    with pytest.raises(SpecError):
        guest_network.check([interface(**wrong)])


def test_the_guest_takes_no_more_than_fit():
    with pytest.raises(SpecError, match="5 interfaces, at most 4"):
        guest_network.check([interface(name=f"eth{n}") for n in range(5)])


def spec(*entries):
    return {"linux": {"namespaces": [{"type": "pid"}, *entries]}}


@pytest.mark.parametrize("entries", [(), ({"type": "network", "path": "/proc/self/ns/net"},)])
def test_the_hosts_network_is_refused_unless_the_settings_give_none_instead(entries):
    with pytest.raises(SpecError, match="a VM cannot use the host's network") as caught:
        host.check_network(spec(*entries), Settings())
    assert 'host_network = "none"' in caught.value.hint
    host.check_network(spec(*entries), Settings(host_network="none"))
    assert namespace_of(spec(*entries), os.getpid()) == -1


def test_a_network_namespace_of_its_own_is_nobodys_until_a_process_stands_for_it():
    own = spec({"type": "network"})
    host.check_network(own, Settings())
    assert namespace_of(own, os.getpid()) == -1
    with subprocess.Popen(["sleep", "1000"]) as caller:  # one that stays where we are has made none
        assert namespace_of(own, caller.pid) == -1
        caller.kill()
    gone = spec({"type": "network", "path": "/run/netns/none-such"})
    with pytest.raises(SpecError, match=r"linux\.namespaces\[1\]\.path: no such file"):
        namespace_of(gone, os.getpid())
    with pytest.raises(SpecError, match=r"linux\.namespaces\[1\]\.path: no such file"):
        host.check_network(gone, Settings())


@real
def test_a_namespace_by_path_is_opened(netns):
    fd = namespace_of(spec({"type": "network", "path": f"/run/netns/{NAME}"}), os.getpid())
    try:
        assert os.path.sameopenfile(fd, netns)
    finally:
        os.close(fd)
