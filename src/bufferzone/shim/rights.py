"""What a shim gives up once its VM runs, before its first thread: from then on it parses what a guest says.

It goes on as root: it mounts volumes, makes cgroups, plugs taps and starts helpers. What is left out is what
reaches past files and processes into the kernel, the clock, the machine's switches and other processes'
memory. Where its container has hooks, which are the caller's own programs and may need anything, programs
that it starts keep all rights.

Source: capabilities(7), prctl(2) PR_SET_NO_NEW_PRIVS, seccomp(2).
"""

from __future__ import annotations

import resource

from bufferzone import allowlists
from bufferzone.errors import HostError
from bufferzone.linux import allowlist, process

#: What for, as the kernel's tracepoint capability:cap_capable told of some 700 shims of the tests, after this
#: step. Not here, since nothing asked: NET_RAW, IPC_LOCK; BPF, in whose place the kernel takes SYS_ADMIN.
KEPT = {
    "CAP_CHOWN": "fchown: of shares, and of what helpers are given",
    "CAP_DAC_OVERRIDE": "mkdir, rmdir, open: state of other owners, mount points in volumes",
    "CAP_DAC_READ_SEARCH": "stat, open: sources of volumes, names that a guest wants locked",
    "CAP_FOWNER": "fchmod: the same",
    "CAP_FSETID": "fchmod: the same",
    "CAP_KILL": "pidfd_send_signal: helpers have uids of their own",
    "CAP_SETGID": "setresgid, setgroups, gid_map: helpers that start later (passt, mkfs.erofs)",
    "CAP_SETUID": "setresuid, uid_map: the same",
    "CAP_SETPCAP": "prctl, capset: their bounding sets",
    "CAP_SETFCAP": "uid_map: a map that has the 0 of the namespace above",
    "CAP_MKNOD": "mknodat: their /dev",
    "CAP_NET_BIND_SERVICE": "bind: the name server's port in a container's namespace",
    "CAP_NET_ADMIN": "netlink, ioctl, sysctl: taps, traffic control, egress rules",
    "CAP_SYS_ADMIN": (
        "open_tree, move_mount, mount_setattr, mount, umount2: volumes come and go with containers, also "
        "those that join; setns: network namespaces, the caller's mounts; unshare, pivot_root, clone: jails"
    ),
    "CAP_SYS_CHROOT": "setns: into a mount namespace",
    "CAP_SYS_NICE": "cgroup.procs, setpriority: a waiter moves, a pool's VM gets its priority",
    "CAP_SYS_PTRACE": "/proc of helpers: their namespaces, roots, what they hold",
    "CAP_SYS_RESOURCE": "prlimit, oom_score_adj: what a container asks for",
    "CAP_SYSLOG": "/dev/kmsg: what was denied to a helper that ended",
}


def give_up(*, hooks: bool) -> None:
    """Only this thread's, and those of the threads and programs that it starts. Raises `HostError`."""
    try:
        kept = process.capability_mask(list(KEPT))
        mask = kept & process.permitted_capabilities()
        if not hooks:
            process.drop_bounding(kept)
            process.set_no_new_privileges()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold what passed through us
        process.set_ambient(0)
        process.set_capabilities(effective=mask, permitted=mask, inheritable=0)
        if not hooks:
            process.load_seccomp(
                allowlist.all_but(allowlists.NOT_FOR_A_SHIM), process.SECCOMP_FILTER_FLAG_LOG
            )
    except OSError as error:
        raise HostError(f"the shim cannot give up rights: {error}", code="shim-rights") from error
