"""Which modules the guest's kernel may load on demand, and why: what a plain container's host has in reach.

On a host a container with CAP_NET_ADMIN that runs nft or iptables makes the kernel load their modules. The
guest's kernel asks its own modprobe by the same rules: for most of these under CAP_NET_ADMIN or
CAP_SYS_ADMIN only, for a protocol family (net-pf-N) whoever opens such a socket. They lie compressed in the
image, cost a start nothing, and memory of a third of their size.

Left out: drivers of hardware that no VM has; file systems on disks and servers beyond the small ones (XFS,
Btrfs, NFS, CIFS, device mapper: 4 MB packed, and a container's volumes are mounted on the host); protocols
that only distributions' blacklists make safe (DCCP, RDS, TIPC, CAN, X.25). A row says what it is for; names
may be patterns, since each kernel has a few more or fewer of a family.
"""

from __future__ import annotations

import fnmatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ROWS = (
    ("nftables: rules, sets, NAT", "nfnetlink nfnetlink_* nf_tables nft_* nf_*"),
    (
        "iptables, both back ends: service meshes, kube-proxy, Docker",
        "x_tables xt_* ip_tables ipt_* iptable_*",
    ),
    ("the same for IPv6", "ip6_tables ip6t_* ip6table_*"),
    ("arptables and ebtables", "arp_tables arpt_* arptable_* ebtables ebt_* ebtable_*"),
    ("ipset: network policies", "ip_set ip_set_*"),
    ("bridged packets in iptables: Docker and Kubernetes inside", "br_netfilter"),
    ("kube-proxy in its IPVS mode", "ip_vs ip_vs_*"),
    ("interfaces made with `ip link add`: VPNs, CNI plug-ins", "dummy ifb macvlan macvtap ipvlan ipvtap tap"),
    ("VLANs, overlays and VRFs of network plug-ins", "8021q vxlan geneve vrf bonding nlmon"),
    ("WireGuard", "wireguard"),
    (
        "tunnels: IPIP and GRE of Calico and others, L2TP",
        "ipip sit ip_gre ip6_gre ip6_tunnel fou fou6 l2tp_*",
    ),
    (
        "IPsec: strongSwan, Libreswan",
        "xfrm_user xfrm_interface af_key esp4 esp6 ah4 ah6 ip_vti ip6_vti ipcomp*",
    ),
    ("the ciphers of IPsec, by the names that it asks for", "authenc* echainiv seqiv gcm ccm ctr cbc cmac"),
    ("the same", "chacha20poly1305 aesni_intel"),
    ("tc: queues, classifiers, actions", "sch_* cls_* act_* em_*"),
    ("Open vSwitch's data path: OVN, Kube-OVN", "openvswitch vport_*"),
    (
        "ss asks for sockets",
        "inet_diag tcp_diag udp_diag raw_diag unix_diag netlink_diag af_packet_diag mptcp_diag",
    ),
    ("SCTP: telecommunication, Kubernetes services", "sctp sctp_diag"),
    ("TLS in the kernel: nginx, OpenSSL", "tls"),
    (
        "congestion control, by sysctl or setsockopt",
        "tcp_bbr tcp_htcp tcp_vegas tcp_westwood tcp_dctcp tcp_illinois",
    ),
    ("ciphers for programs (AF_ALG): cryptsetup, iwd", "af_alg algif_*"),
    ("disk images in a privileged container", "loop squashfs isofs vfat exfat udf nls_iso8859_1 nls_ascii"),
    ("programs of other machines, automounts, character devices in FUSE", "binfmt_misc autofs4 cuse"),
)


def names(available: Iterable[str]) -> list[str]:
    """Those of `available` (modules of one kernel) that may be loaded on demand."""
    patterns = [pattern for _, row in ROWS for pattern in row.split()]
    return sorted(name for name in available if any(fnmatch.fnmatchcase(name, p) for p in patterns))
