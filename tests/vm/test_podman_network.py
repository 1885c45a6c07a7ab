"""Podman's networks, with netavark and with CNI: everything in a network namespace that stands for the host.

What Podman does to firewall, bridges and sysctls it does in there, and all of it goes with that namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from vm import netns
from vm.conftest import TEMPLATE_S, Clean, load_image
from vm.netns import World, ip
from vm.podman import DROP_IN, Podman, remove_tree
from vm.verbs import await_true
from vm.warm import makers

#: what each needs in place
BACKENDS = {
    "netavark": ("/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns"),
    "cni": ("/usr/lib/cni/bridge", "/usr/lib/cni/portmap", "/usr/lib/cni/dnsname"),
}
#: Podman's own, and NET_RAW: the ping of Debian's busybox opens a raw socket
CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
)
CONTAINERS = f"[containers]\ndefault_capabilities = {[f'CAP_{name}' for name in CAPABILITIES.split()]}\n"
SUBNET, SUBNET6 = "10.213.40.0/24", "fd13:40::/64"
GATEWAY, GATEWAY6 = "10.213.40.1", "fd13:40::1"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="this machine has no /dev/net/tun"),
    pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed"),
]


class Networked:
    """Podman in the namespace `outside` of a world, with the networks `one` (both families) and `two`."""

    def __init__(self, directory: Path, world: World, backend: str) -> None:
        self.podman = Podman(directory)
        self.world = world
        self.podman.settings = directory / "containers.conf"
        text = DROP_IN.read_text() + f'\n[network]\nnetwork_backend = "{backend}"\n' + CONTAINERS
        self.podman.settings.write_text(text)
        # netavark keeps addresses and its name server in /run/containers for all Podmans of root, whatever
        # their root; where it finds /run/systemd/system it has systemd start that server, outside
        self.mounts = netns.Mounts("/run/containers", "/run/systemd")
        self.podman.before = (*self.mounts.before, f"--net=/run/netns/{world.outside}")
        self.clean = Clean(self.podman)

    def start(self) -> None:
        self.world.trust_addresses()  # Podman's name server does not wait for that
        create = ("network", "create", "--subnet")
        self.podman(*create, SUBNET, "--ipv6", "--subnet", SUBNET6, "one")
        self.podman(*create, "10.213.41.0/24", "two")

    def run(self, *words: object, network: str = "one", status: int = 0) -> str:
        """`podman run --rm` with the image's busybox; its output."""
        return self.podman("run", "--rm", "--network", network, *words, status=status).text

    def close(self) -> None:
        self.podman.any("rm", "--all", "--force", "--time", "0", timeout_s=120)
        for name in ("one", "two"):
            self.podman.any("network", "rm", name)


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def net(request):
    missing = [path for path in BACKENDS[request.param] if not os.path.exists(path)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    directory = Path(tempfile.mkdtemp(prefix="bufferzone-podman-"))
    directory.chmod(0o711)
    try:
        with World() as world, ExitStack() as stack:
            found = Networked(directory, world, request.param)
            stack.callback(found.mounts.close)
            try:
                if request.param == "cni" and found.podman.any("info").status:
                    pytest.skip("this Podman was built without CNI")
                load_image(found.podman)
                found.start()
                yield found
            finally:
                found.close()
                found.podman.close()
            found.clean.check()
    finally:
        remove_tree(directory)


def test_a_container_reaches_its_gateway_with_both_families(net):
    script = f"ping -c 2 {GATEWAY} && ping -c 2 {GATEWAY6}; ls /sys/class/net"
    text = net.run(net.podman.image, "sh", "-c", script)
    assert text.count("2 packets received") == 2
    assert text.endswith("eth0\nlo")


def test_it_has_the_address_and_mac_that_podman_tells(net):
    net.podman("run", "--detach", "--name", "told", "--network", "one", net.podman.image, "sleep", "1000")
    try:
        told = net.podman.inspect("told")["NetworkSettings"]["Networks"]["one"]
        text = net.podman("exec", "told", "ip", "address", "show", "eth0").text
        assert f"inet {told['IPAddress']}/24" in text
        assert f"inet6 {told['GlobalIPv6Address']}/64" in text
        assert told["MacAddress"] in text
    finally:
        net.podman("rm", "--force", "--time", "0", "told")


def test_a_published_port_is_reachable_from_the_host(net):
    serve = "mkdir /tmp/w; echo it is me > /tmp/w/page; exec httpd -f -p 80 -h /tmp/w"
    words = ("--name", "web", "--network", "one", "-p", "18080:80", net.podman.image, "sh", "-c", serve)
    net.podman("run", "--detach", *words)
    try:
        for address in ("127.0.0.1", GATEWAY):
            assert b"it is me\n" in _get(net.world, address, 18080)
    finally:
        net.podman("rm", "--force", "--time", "0", "web")


def _get(world: World, address: str, port: int) -> bytes:
    def try_it() -> bytes:
        try:
            with world.connect(address, port) as sock:
                sock.sendall(b"GET /page HTTP/1.0\r\n\r\n")
                parts = []
                while part := sock.recv(4096):
                    parts.append(part)
                return b"".join(parts)
        except (TimeoutError, ConnectionError):
            return b""

    found = await_true(try_it, f"an answer of {address}:{port}")
    assert isinstance(found, bytes)
    return found


def _serve_a_page(net: Networked, name: str, port: int, network: str = "one") -> None:
    serve = "mkdir /tmp/w; echo it is me > /tmp/w/page; exec httpd -f -p 80 -h /tmp/w"
    words = ("--name", name, "--network", network, "-p", f"{port}:80", net.podman.image, "sh", "-c", serve)
    net.podman("run", "--detach", *words)


def _shim_log(net: Networked, name: str) -> str:
    return (net.podman.state / net.podman.inspect(name)["Id"] / "shim.log").read_text()


def _start(net: Networked, name: str) -> str:
    """Its kind, `cold` or `warm`."""
    file = net.podman.state / net.podman.inspect(name)["Id"] / "state.json"
    return str(json.loads(file.read_text())["annotations"]["bufferzone.start"])


def _pings(net: Networked, name: str, address: str) -> bool:
    return "1 packets received" in net.podman.any("exec", name, "ping", "-c", "1", "-W", "5", address).text


def test_a_network_connected_to_a_running_container_is_there_until_it_is_disconnected(net):
    _serve_a_page(net, "web", 18080)
    try:
        words = ("--name", "joined", "--network", "container:web", net.podman.image, "sleep", "1000")
        net.podman("run", "--detach", *words)
        for _ in range(2):
            net.podman("network", "connect", "two", "web")
            await_true(lambda: _pings(net, "web", "10.213.41.1"), "the network two")
            assert _pings(net, "joined", "10.213.41.1")
            told = net.podman.inspect("web")["NetworkSettings"]["Networks"]["two"]
            text = net.podman("exec", "web", "ip", "address", "show", "eth1").text
            assert f"inet {told['IPAddress']}/24" in text
            assert told["MacAddress"] in text
            net.podman("network", "disconnect", "two", "web")
            links = ("exec", "joined", "ls", "/sys/class/net")
            await_true(lambda words=links: net.podman(*words).lines == ["eth0", "lo"], "eth1 to go")
            assert _pings(net, "web", GATEWAY)
            assert b"it is me\n" in _get(net.world, "127.0.0.1", 18080)
        assert "not followed" not in _shim_log(net, "web")
    finally:
        for name in ("joined", "web"):
            net.podman("rm", "--force", "--time", "0", name)


def test_a_network_is_connected_to_a_vm_that_was_restored_from_a_template_too(net):
    words = ("--name", "restored", "--network", "one", net.podman.image, "sleep", "1000")
    net.podman("run", "--detach", *words)
    try:
        while _start(net, "restored") == "cold":  # its template is in the making, unless another test made it
            await_true(lambda: not makers(), "the maker's end", TEMPLATE_S)
            net.podman("rm", "--force", "--time", "0", "restored")
            net.podman("run", "--detach", *words)
        for _ in range(2):
            net.podman("network", "connect", "two", "restored")
            await_true(lambda: _pings(net, "restored", "10.213.41.1"), "the network two")
            net.podman("network", "disconnect", "two", "restored")
            links = ("exec", "restored", "ls", "/sys/class/net")
            await_true(lambda words=links: net.podman(*words).lines == ["eth0", "lo"], "eth1 to go")
            assert _pings(net, "restored", GATEWAY)
        assert "not followed" not in _shim_log(net, "restored")
    finally:
        net.podman("rm", "--force", "--time", "0", "restored")


def test_a_network_that_is_reloaded_is_the_containers_again(net):
    _serve_a_page(net, "web", 18080)
    try:
        assert b"it is me\n" in _get(net.world, "127.0.0.1", 18080)
        for _ in range(2):
            net.podman("network", "reload", "web")
            await_true(lambda: _pings(net, "web", GATEWAY), "the gateway")
            await_true(lambda: _pings(net, "web", GATEWAY6), "the gateway's IPv6")
            for address in ("127.0.0.1", GATEWAY):
                assert b"it is me\n" in _get(net.world, address, 18080)
        assert "not followed" not in _shim_log(net, "web")
    finally:
        net.podman("rm", "--all", "--force", "--time", "0")


@pytest.mark.skipif(not shutil.which("slirp4netns"), reason="slirp4netns is not installed")
def test_a_port_of_roots_slirp4netns_is_served(net):
    _serve_a_page(net, "slirp", 18081, "slirp4netns")
    try:
        assert b"it is me\n" in _get(net.world, "127.0.0.1", 18081)
    finally:
        net.podman("rm", "--all", "--force", "--time", "0")


def test_containers_of_one_network_find_each_other_by_name(net):
    net.podman("run", "--detach", "--name", "named", "--network", "one", net.podman.image, "sleep", "1000")
    try:
        address = net.podman.inspect("named")["NetworkSettings"]["Networks"]["one"]["IPAddress"]
        script = f"nslookup named; ping -c 2 {address}"
        text = net.run(net.podman.image, "sh", "-c", script)
        assert f"Address: {address}" in text.replace("Address 1:", "Address:")
        assert "2 packets received" in text
    finally:
        net.podman("rm", "--force", "--time", "0", "named")


def test_two_networks_are_two_interfaces(net):
    script = f"ping -c 1 {GATEWAY} && ping -c 1 10.213.41.1; ip -6 route; ls /sys/class/net"
    text = net.run("--network", "two", net.podman.image, "sh", "-c", script)
    assert text.count("1 packets received") == 2
    assert text.count("fe80::/64 dev eth") == 2
    assert text.endswith("eth0\neth1\nlo")


def test_an_mtu_of_9000_is_the_vms_too(net):
    net.podman("network", "create", "--subnet", "10.213.42.0/24", "--opt", "mtu=9000", "large")
    try:
        script = "cat /sys/class/net/eth0/mtu; ping -c 1 -s 8900 10.213.42.1"
        text = net.run(net.podman.image, "sh", "-c", script, network="large")
        assert text.startswith("9000\n")
        assert "1 packets received" in text
    finally:
        net.podman("network", "rm", "large")


def test_a_namespace_by_path(net):
    net.world.link("eth0", "10.213.7.2/24")
    try:
        text = net.run(net.podman.image, "ping", "-c", "2", "10.213.7.1", network=f"ns:{net.world.path}")
        assert "2 packets received" in text
        assert netns.left_in(net.world.inside) == []
    finally:
        ip("-n", net.world.inside, "link", "delete", "eth0")


def test_the_network_of_another_container_is_shared_with_it(net):
    words = ("run", "--detach", "--name", "owner", "--network", "one", "--hostname", "one")
    net.podman(*words, net.podman.image, "sh", "-c", _SERVE)
    try:
        words = ("run", "--detach", "--name", "guest", "--network", "container:owner", "--volume", "/srv")
        net.podman(*words, net.podman.image, "sh", "-c", _SERVE.replace("8080", "9090"))
        address = net.podman.inspect("owner")["NetworkSettings"]["Networks"]["one"]["IPAddress"]
        for name, other in (("owner", 9090), ("guest", 8080)):
            text = net.podman("exec", name, "ip", "address", "show", "eth0").text
            assert f"inet {address}/24" in text
            assert "2 packets received" in net.podman("exec", name, "ping", "-c", "2", GATEWAY).text
            get = ("exec", name, "wget", "-q", "-O", "-", f"http://127.0.0.1:{other}/page")
            await_true(lambda words=get: net.podman.any(*words).text, "the other's page")
        net.podman("exec", "guest", "sh", "-c", "echo mine > /srv/file; echo mine > /tmp/file")
        assert net.podman("exec", "owner", "ls", "/tmp").lines == ["page"]
        assert "8080" not in net.podman("top", "guest").text
        net.podman("stop", "--time", "0", "guest")
        assert "2 packets received" in net.podman("exec", "owner", "ping", "-c", "2", GATEWAY).text
        net.podman("start", "guest")
        assert net.podman("exec", "guest", "cat", "/srv/file", "/tmp/file").lines == ["mine", "mine"]
        assert "2 packets received" in net.podman("exec", "guest", "ping", "-c", "2", GATEWAY).text
        net.podman("stop", "--time", "0", "owner")
        assert net.podman("exec", "guest", "cat", "/srv/file").text == "mine"
        net.podman("rm", "--force", "--time", "0", "guest")
        net.podman("start", "owner")
        text = net.run(net.podman.image, "ping", "-c", "2", GATEWAY, network="container:owner")
        assert "2 packets received" in text
    finally:
        net.podman("rm", "--all", "--force", "--time", "0")


_SERVE = "mkdir -p /tmp; echo page > /tmp/page; exec httpd -f -p 127.0.0.1:8080 -h /tmp"


def test_without_a_network_two_containers_share_their_loopback(net):
    words = ("run", "--detach", "--name", "owner", "--network", "none", net.podman.image, "sh", "-c", _SERVE)
    net.podman(*words)
    try:
        get = "for n in $(seq 60); do wget -q -O - http://127.0.0.1:8080/page && break; sleep 1; done"
        assert net.run(net.podman.image, "sh", "-c", get, network="container:owner") == "page"
        text = net.run(net.podman.image, "sh", "-c", "ls /sys/class/net", network="container:owner")
        assert text == "lo"
    finally:
        net.podman("rm", "--all", "--force", "--time", "0")


def test_a_pod_is_one_vm(net):
    image = net.podman.image
    infra = ("--infra-image", image, "--infra-command", "/bin/sleep 1000")
    net.podman("pod", "create", "--name", "pod", "--network", "one", "--hostname", "of-the-pod", *infra)
    try:
        words = ("run", "--detach", "--pod", "pod", "--name")
        net.podman(*words, "web", image, "sh", "-c", _SERVE)
        net.podman(*words, "other", image, "sh", "-c", "echo shared > /dev/shm/file; exec sleep 1000")
        shims = {path.read_text() for path in net.podman.state.glob("*/owner")}
        assert len(shims) == 1
        script = (
            f"ping -c 2 {GATEWAY}; hostname; cat /dev/shm/file; wget -q -O - http://127.0.0.1:8080/page; ps"
        )
        text = await_true(lambda: _page(net.podman.any("exec", "other", "sh", "-c", script).text), "the page")
        assert "2 packets received" in text
        assert "of-the-pod\nshared\npage\n" in text
        assert "httpd" not in text.partition("page\n")[2], "its processes are its own"
        done = net.podman(
            "run", "--rm", "--pod", "pod", image, "sh", "-c", "cat /dev/shm/file; exit 7", status=7
        )
        assert done.text == "shared"
        net.podman("pod", "pause", "pod")
        net.podman("pod", "unpause", "pod")
        net.podman("pod", "stop", "--time", "0", "pod")
        net.podman("pod", "start", "pod")
        assert net.podman("exec", "web", "hostname").text == "of-the-pod"
        assert "2 packets received" in net.podman("exec", "web", "ping", "-c", "2", GATEWAY).text
    finally:
        net.podman("pod", "rm", "--force", "--time", "0", "pod")


def _page(text: str) -> str:
    return text if "page" in text else ""


def test_ipc_and_pid_namespaces_come_with_the_network(net):
    words = ("run", "--detach", "--name", "owner", "--network", "one", net.podman.image, "sh", "-c")
    net.podman(*words, "echo there > /dev/shm/file; exec sleep 1000")
    try:
        both = ("--ipc", "container:owner", "--pid", "container:owner")
        script = "cat /dev/shm/file; ps"
        text = net.run(*both, net.podman.image, "sh", "-c", script, network="container:owner")
        assert text.startswith("there\n")
        assert "sleep 1000" in text
        done = net.podman.any("run", "--rm", *both, net.podman.image, "true")
        assert done.status != 0
        assert "a VM cannot join the pid namespace" in done.complaint
    finally:
        net.podman("rm", "--all", "--force", "--time", "0")


def test_the_hosts_network_is_refused_with_a_hint(net):
    done = net.podman.any("run", "--rm", "--network", "host", net.podman.image, "true")
    assert done.status != 0
    assert "a VM cannot use the host's network" in done.complaint
    assert "use a bridge network or none" in done.complaint


def test_restart_gives_a_network_again(net):
    words = ("--name", "again", "--network", "one", net.podman.image, "ping", "-c", "1", GATEWAY)
    assert "1 packets received" in net.podman("run", *words).text
    try:
        done = net.podman("start", "--attach", "again")
        assert "1 packets received" in done.text
    finally:
        net.podman("rm", "again")


def test_nothing_of_ours_is_left_among_the_hosts_interfaces(net):
    links = subprocess.run(
        ["tc", "-n", net.world.outside, "qdisc"], capture_output=True, text=True, check=True
    ).stdout
    assert "ingress" not in links
    assert "bz" not in ip("-n", net.world.outside, "-o", "link", "show", "type", "tun")
