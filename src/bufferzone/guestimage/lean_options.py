"""The options of the lean guest's kernel, as data: each row with its reason, on top of nothing.

What is not named here is off: Kconfig's `allnoconfig` starts from these lines, as tinyconfig does from a few
others. Only x86-64; no loadable modules, tracing, audit, symbols, io_uring, 32-bit calls or legacy devices
(docs/decisions/lean-guest.md says what that costs). The builder compares what Kconfig made of the lines: a
name that a newer Linux has no more, or that depends on something else, fails the build by that name.
"""

from __future__ import annotations

_MACHINE = (
    ("what a container's programs are built for, and nothing of 32 bits", "64BIT"),
    ("asked for by most of what follows: without it Kconfig keeps a desktop's defaults", "EXPERT"),
    ("a VM of several vCPUs, as many as the setting allows", "SMP NR_CPUS=64"),
    ("KVM's clock, wake-ups and end of interrupt: fewer exits", "HYPERVISOR_GUEST PARAVIRT KVM_GUEST"),
    ("a spinning vCPU gives its time away", "PARAVIRT_SPINLOCKS"),
    ("started as an ELF file at its PVH entry", "PVH"),
    ("under KVM, interrupts without exits", "X86_X2APIC"),
    (
        "both makers' own set-up and bug tables: mitigations hang on them",
        "CPU_SUP_INTEL CPU_SUP_AMD PROCESSOR_SELECT",
    ),
    ("what it is called, after the release", 'LOCALVERSION="-bufferzone"'),
    ("power-off, and the tables that name interrupts and PCI", "ACPI"),
    ("TCG's clock is measured against it", "X86_PM_TIMER"),
    ("devices are on PCI, of q35 on PCI Express", "PCI PCI_MSI PCIEPORTBUS PCI_MMCONFIG"),
    (
        "NICs and the share come after boot or restore; QEMU tells of them by ACPI",
        "HOTPLUG_PCI HOTPLUG_PCI_ACPI HOTPLUG_PCI_PCIE",
    ),
    ("an idle guest sleeps, and timers are exact", "HIGH_RES_TIMERS NO_HZ_IDLE"),
    ("a guest for servers: the fewest switches", "PREEMPT_NONE"),
    ("no ISA or PCI device needs memory below 16 MiB; the page allocator is simpler", "ZONE_DMA=n"),
)

_DEVICES = (
    ("QEMU's devices", "VIRTIO_MENU VIRTIO_PCI"),
    ("Firecracker's and microvm's", "VIRTIO_MMIO VIRTIO_MMIO_CMDLINE_DEVICES"),
    (
        "the root file system of an image, and what Firecracker has in place of a share",
        "BLOCK BLK_DEV VIRTIO_BLK",
    ),
    ("network cards", "NETDEVICES NET_CORE VIRTIO_NET"),
    ("the agent's channel with QEMU", "TTY VIRTIO_CONSOLE"),
    (
        "the agent's channel with Firecracker, or where the host has vhost-vsock",
        "VSOCKETS VIRTIO_VSOCKETS",
    ),
    ("freed pages go back to the host; templates are made small through it", "VIRTIO_BALLOON COMPACTION"),
    ("entropy from the host", "HW_RANDOM HW_RANDOM_VIRTIO"),
    ("a panic is told to QEMU", "PVPANIC PVPANIC_PCI"),
    ("a clone's random numbers are new at once", "VIRT_DRIVERS VMGENID"),
    (
        "the log that explains a failed boot; one port, found at its old address",
        "PRINTK SERIAL_8250 SERIAL_8250_CONSOLE SERIAL_8250_NR_UARTS=1 SERIAL_8250_RUNTIME_UARTS=1",
    ),
    ("terminals of containers", "UNIX98_PTYS"),
    ("files as disks, in a privileged container", "BLK_DEV_LOOP BLK_DEV_LOOP_MIN_COUNT=0"),
)

_WALLS = (
    (
        "the processors' faults, as the distribution: containers of a pod are no friends",
        "CPU_MITIGATIONS MITIGATION_PAGE_TABLE_ISOLATION MITIGATION_RETPOLINE MITIGATION_RETHUNK",
    ),
    (
        "the same, each for its fault",
        (
            "MITIGATION_UNRET_ENTRY MITIGATION_IBPB_ENTRY MITIGATION_IBRS_ENTRY MITIGATION_SRSO "
            "MITIGATION_GDS MITIGATION_RFDS MITIGATION_SPECTRE_BHI MITIGATION_MDS MITIGATION_TAA "
            "MITIGATION_MMIO_STALE_DATA MITIGATION_L1TF MITIGATION_RETBLEED MITIGATION_SPECTRE_V1 "
            "MITIGATION_SPECTRE_V2 MITIGATION_SRBDS MITIGATION_SSB MITIGATION_ITS MITIGATION_TSA"
        ),
    ),
    (
        "errors in C become an end and not an exploit",
        (
            "STACKPROTECTOR STACKPROTECTOR_STRONG VMAP_STACK FORTIFY_SOURCE HARDENED_USERCOPY "
            "RANDOMIZE_KSTACK_OFFSET RANDOMIZE_KSTACK_OFFSET_DEFAULT SCHED_STACK_END_CHECK"
        ),
    ),
    ("the heap", "SLAB_FREELIST_RANDOM SLAB_FREELIST_HARDENED INIT_ON_ALLOC_DEFAULT_ON"),
    ("dmesg is for who may read it", "SECURITY_DMESG_RESTRICT"),
    ("a bug ends the process that met it, with a line", "BUG"),
)

_PROCESSES = (
    ("users, without which there is no container", "MULTIUSER"),
    ("namespaces", "NAMESPACES UTS_NS IPC_NS USER_NS PID_NS NET_NS TIME_NS"),
    (
        "cgroup v2: memory, CPU, pids, io, cpusets",
        (
            "CGROUPS MEMCG CGROUP_SCHED FAIR_GROUP_SCHED CFS_BANDWIDTH CGROUP_PIDS CPUSETS BLK_CGROUP "
            "BLK_DEV_THROTTLING BLK_CGROUP_IOCOST"
        ),
    ),
    ("memory.swap.max, which callers set; there is no swap", "SWAP"),
    ("hugetlb.*.max, and huge pages of databases", "HUGETLBFS CGROUP_HUGETLB"),
    (
        "the devices of a container: cgroup v2 has BPF for it, compiled lest it be interpreted speculatively",
        "BPF_SYSCALL CGROUP_BPF BPF_JIT BPF_JIT_ALWAYS_ON BPF_UNPRIV_DEFAULT_OFF",
    ),
    (
        "filters of system calls; the notification of one is how locks are asked for",
        "SECCOMP SECCOMP_FILTER",
    ),
    ("a session keyring for each container", "KEYS"),
    (
        "programs, scripts, and those of other machines through an emulator",
        "BINFMT_ELF BINFMT_SCRIPT BINFMT_MISC",
    ),
    (
        "what C libraries and languages call",
        "FUTEX EPOLL SIGNALFD TIMERFD EVENTFD SHMEM AIO ADVISE_SYSCALLS MEMBARRIER RSEQ FILE_LOCKING",
    ),
    ("the agent's and everybody's timers", "POSIX_TIMERS"),
    ("System V and POSIX queues, semaphores, shared memory", "SYSVIPC POSIX_MQUEUE"),
    ("strace and gdb in a container", "CROSS_MEMORY_ATTACH"),
    ("name_to_handle_at(2): container engines inside, and fanotify", "FHANDLE"),
    ("kcmp(2): systemd compares descriptors", "KCMP"),
    ("unprivileged sandboxes of programs", 'SECURITY SECURITY_LANDLOCK LSM="landlock"'),
    ("core dumps of a container's programs", "ELF_CORE COREDUMP"),
    ("memory in large pages for who asks", "TRANSPARENT_HUGEPAGE TRANSPARENT_HUGEPAGE_MADVISE"),
    (
        "`echo c` is how an operator ends a guest and gets its last words",
        "MAGIC_SYSRQ MAGIC_SYSRQ_DEFAULT_ENABLE=0x1b6",
    ),
)

_FILES = (
    ("the image, if it is the initrd; not packed, so that nothing is unpacked", "BLK_DEV_INITRD"),
    ("the kernel's own file systems", "PROC_FS PROC_SYSCTL PROC_PAGE_MONITOR SYSFS DEVTMPFS"),
    (
        "memory as a file system, with all that a container's root may have",
        "TMPFS TMPFS_XATTR TMPFS_POSIX_ACL",
    ),
    ("the shared tree; FUSE file systems of containers", "FUSE_FS VIRTIO_FS CUSE"),
    (
        "root file systems and layers, with file capabilities and ACLs",
        "MISC_FILESYSTEMS EROFS_FS EROFS_FS_XATTR EROFS_FS_POSIX_ACL EROFS_FS_SECURITY EROFS_FS_ZIP",
    ),
    ("what is written on top of one", "OVERLAY_FS"),
    ("images that a caller has", "EXT4_FS EXT4_USE_FOR_EXT2 EXT4_FS_POSIX_ACL EXT4_FS_SECURITY"),
    (
        "disk images in a privileged container",
        (
            "SQUASHFS SQUASHFS_XATTR SQUASHFS_ZLIB SQUASHFS_ZSTD SQUASHFS_XZ ISO9660_FS JOLIET ZISOFS "
            "VFAT_FS NLS_CODEPAGE_437 NLS_ISO8859_1 NLS_ASCII NLS_UTF8"
        ),
    ),
    ("programs wait for changes of files", "DNOTIFY INOTIFY_USER FANOTIFY FANOTIFY_ACCESS_PERMISSIONS"),
    ("names of files in any alphabet", "NLS"),
)

_NETWORK = (
    (
        "sockets",
        "NET UNIX INET IPV6 PACKET NETLINK_DIAG UNIX_DIAG PACKET_DIAG INET_DIAG INET_TCP_DIAG INET_UDP_DIAG",
    ),
    (
        "routes as hosts have them: policy, several ways, multicast",
        (
            "IP_ADVANCED_ROUTER IP_MULTIPLE_TABLES IP_ROUTE_MULTIPATH IPV6_MULTIPLE_TABLES IP_MULTICAST "
            "SYN_COOKIES"
        ),
    ),
    (
        "the congestion control of this decade",
        "TCP_CONG_ADVANCED TCP_CONG_CUBIC TCP_CONG_BBR DEFAULT_CUBIC",
    ),
    (
        "interfaces made with `ip link add`: VPNs, CNI plug-ins, containers inside",
        (
            "TUN VETH BRIDGE BRIDGE_VLAN_FILTERING DUMMY MACVLAN MACVTAP IPVLAN IPVTAP VLAN_8021Q VXLAN "
            "GENEVE NET_L3_MASTER_DEV NET_VRF IFB"
        ),
    ),
    ("VPNs and tunnels", "WIREGUARD NET_IPIP NET_IPGRE_DEMUX NET_IPGRE IPV6_SIT IPV6_TUNNEL"),
    ("nginx and OpenSSL hand TLS to the kernel", "TLS"),
    (
        "tc: queues, classifiers, actions",
        (
            "NET_SCHED NET_SCH_HTB NET_SCH_TBF NET_SCH_PRIO NET_SCH_SFQ NET_SCH_NETEM NET_SCH_FQ "
            "NET_SCH_FQ_CODEL NET_SCH_INGRESS NET_CLS NET_CLS_U32 NET_CLS_FW NET_CLS_BPF NET_CLS_FLOWER "
            "NET_CLS_MATCHALL NET_CLS_ACT NET_ACT_POLICE NET_ACT_GACT NET_ACT_MIRRED NET_ACT_BPF"
        ),
    ),
    (
        "packet filters: connection tracking and NAT",
        (
            "NETFILTER NETFILTER_ADVANCED NETFILTER_INGRESS NF_CONNTRACK NF_CONNTRACK_MARK "
            "NF_CONNTRACK_ZONES NF_CONNTRACK_EVENTS NF_CT_NETLINK NETFILTER_NETLINK_LOG "
            "NETFILTER_NETLINK_QUEUE NF_NAT NF_CONNTRACK_FTP NF_CONNTRACK_TFTP"
        ),
    ),
    (
        "nftables",
        (
            "NF_TABLES NF_TABLES_INET NF_TABLES_IPV4 NF_TABLES_IPV6 NF_TABLES_NETDEV NFT_CT NFT_NAT "
            "NFT_MASQ NFT_REDIR NFT_REJECT NFT_LOG NFT_LIMIT NFT_QUOTA NFT_QUEUE NFT_HASH NFT_NUMGEN "
            "NFT_CONNLIMIT NFT_SOCKET NFT_TPROXY NFT_COMPAT NFT_FIB_IPV4 NFT_FIB_IPV6 NFT_FIB_INET "
            "NFT_DUP_IPV4 NFT_DUP_IPV6"
        ),
    ),
    (
        "iptables, both back ends: service meshes, Docker",
        (
            "NETFILTER_XTABLES NETFILTER_XT_MARK NETFILTER_XT_CONNMARK NETFILTER_XT_NAT "
            "NETFILTER_XT_TARGET_LOG NETFILTER_XT_TARGET_MASQUERADE NETFILTER_XT_TARGET_REDIRECT "
            "NETFILTER_XT_TARGET_TPROXY NETFILTER_XT_TARGET_TCPMSS NETFILTER_XT_TARGET_CT "
            "NETFILTER_XT_TARGET_CHECKSUM NETFILTER_XT_TARGET_NFLOG NETFILTER_XT_TARGET_NFQUEUE"
        ),
    ),
    (
        "the same: what rules ask",
        (
            "NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_COMMENT NETFILTER_XT_MATCH_CONNTRACK "
            "NETFILTER_XT_MATCH_CONNLIMIT NETFILTER_XT_MATCH_HASHLIMIT NETFILTER_XT_MATCH_IPRANGE "
            "NETFILTER_XT_MATCH_LENGTH NETFILTER_XT_MATCH_LIMIT NETFILTER_XT_MATCH_MAC "
            "NETFILTER_XT_MATCH_MULTIPORT NETFILTER_XT_MATCH_OWNER NETFILTER_XT_MATCH_PHYSDEV "
            "NETFILTER_XT_MATCH_PKTTYPE NETFILTER_XT_MATCH_QUOTA NETFILTER_XT_MATCH_RECENT "
            "NETFILTER_XT_MATCH_SOCKET NETFILTER_XT_MATCH_STATE NETFILTER_XT_MATCH_STATISTIC "
            "NETFILTER_XT_MATCH_STRING NETFILTER_XT_MATCH_TCPMSS NETFILTER_XT_MATCH_BPF "
            "NETFILTER_XT_MATCH_CGROUP"
        ),
    ),
    (
        "their tables",
        (
            "IP_NF_IPTABLES IP_NF_FILTER IP_NF_NAT IP_NF_MANGLE IP_NF_RAW IP_NF_TARGET_REJECT "
            "IP6_NF_IPTABLES IP6_NF_FILTER IP6_NF_NAT IP6_NF_MANGLE IP6_NF_RAW IP6_NF_TARGET_REJECT"
        ),
    ),
    (
        "ipset and IPVS: kube-proxy and network policies inside",
        (
            "IP_SET IP_SET_HASH_IP IP_SET_HASH_IPPORT IP_SET_HASH_NET IP_SET_HASH_NETPORT "
            "IP_SET_BITMAP_PORT IP_SET_LIST_SET NETFILTER_XT_SET"
        ),
    ),
    ("bridged packets in iptables", "BRIDGE_NETFILTER"),
)

#: (reason, options): NAME is y, NAME=VALUE has that value; n: off, though a default would turn it on
ROWS: tuple[tuple[str, str], ...] = (*_MACHINE, *_DEVICES, *_WALLS, *_PROCESSES, *_FILES, *_NETWORK)


def fragment() -> str:
    """The rows as lines of a kernel configuration, each below its reason."""
    lines: list[str] = []
    for reason, options in ROWS:
        lines += [f"# {reason}", *(_line(option) for option in options.split())]
    return "".join(f"{line}\n" for line in lines)


def lost(config: str) -> list[str]:
    """The options of `ROWS` that the finished configuration has otherwise."""
    found = set(config.splitlines())
    wanted = [option for _, options in ROWS for option in options.split()]
    return [option for option in wanted if not _is_in(option, found)]


def _is_in(option: str, lines: set[str]) -> bool:
    name, _, value = option.partition("=")
    if value == "n":  # one that Kconfig does not even show is off as well
        return f"CONFIG_{name}=y" not in lines
    return _line(option) in lines


def _line(option: str) -> str:
    name, _, value = option.partition("=")
    return f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value or 'y'}"
