"""Kernel modules in a container: what its kernel loads on demand is there, by the rules of any host.

The host's own programs run in the container, from a volume: nft, iptables, ip, tc.
"""

from __future__ import annotations

import os
import shutil

import pytest

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(not os.path.islink("/lib"), reason="the host's programs are not all below /usr"),
]

PROGRAMS = ["-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro"]
NETWORK = ["--cap-add", "NET_ADMIN,NET_RAW"]
RULES = """table inet t {
	chain c {
		type nat hook postrouting priority srcnat; policy accept;
		ct state new masquerade
	}
}"""

LINKS = (
    "d0 type dummy",
    "w0 type wireguard",
    "b0 type bridge",
    "v0 type veth peer name v1",
    "x0 type vxlan id 3 dstport 4789",
    "r0 type vrf table 7",
    "m0 link d0 type macvlan",
    "l0 link d0 type vlan id 5",
    "i0 link v0 type ipvlan",
    "t0 type ipip local 10.0.0.1 remote 10.0.0.2",
)


def _needs(*names: str) -> None:
    for name in names:
        if shutil.which(name, path="/usr/sbin:/usr/bin") is None:
            pytest.skip(f"the host has no {name}")


def _run(podman, script: str, *options: str) -> list[str]:
    return podman("run", "--rm", *PROGRAMS, *options, podman.image, "sh", "-ec", script).lines


def test_nftables_take_rules_with_nat_and_connection_tracking(podman) -> None:
    _needs("nft")
    script = f"printf '%s' '{RULES}' | /usr/sbin/nft -f -; /usr/sbin/nft list ruleset"
    assert _run(podman, script, *NETWORK) == RULES.splitlines()


def test_iptables_have_their_tables_in_both_back_ends(podman) -> None:
    _needs("iptables-legacy", "xtables-nft-multi")
    rule = "-t nat -A POSTROUTING -m conntrack --ctstate NEW -m addrtype --src-type LOCAL -j MASQUERADE"
    for program in ("iptables-legacy", "xtables-nft-multi iptables"):
        shown = _run(
            podman, f"/usr/sbin/{program} {rule}; /usr/sbin/{program} -t nat -S POSTROUTING", *NETWORK
        )
        assert shown == ["-P POSTROUTING ACCEPT", rule.removeprefix("-t nat ")]


def test_interfaces_of_vpns_and_network_plugins_can_be_made(podman) -> None:
    _needs("ip", "tc")
    made = "; ".join(f"/usr/bin/ip link add {link}" for link in LINKS)
    queues = "/usr/sbin/tc qdisc add dev d0 root netem delay 1ms; /usr/sbin/tc qdisc show dev d0 root"
    lines = _run(podman, f"{made}; {queues}", *NETWORK)
    assert [line.split()[1] for line in lines] == ["netem"]


def test_without_the_capability_nothing_is_loaded(podman) -> None:
    _needs("nft")
    script = "! /usr/sbin/nft list ruleset 2>/dev/null; ls /sys/module; ls -d /proc/modules || true"
    found = set(_run(podman, script))
    if "/proc/modules" not in found:
        pytest.skip("the guest's kernel has no modules: what it can do is built in")
    assert {"nf_tables", "nf_conntrack", "wireguard"} & found == set()
