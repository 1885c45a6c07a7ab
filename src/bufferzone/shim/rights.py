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

#: chown and modes of shares; kill; uids and bounding sets of helpers; taps and rules; roots of helpers; their
#: /proc; cgroups, mounts and namespaces; limits; niceness; device nodes and file capabilities of what a
#: volume holds; device filters of cgroups; the kernel's log, which says what was denied to a helper
KEPT = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID "
    "CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_SYS_CHROOT CAP_SYS_PTRACE "
    "CAP_SYS_ADMIN CAP_SYS_NICE CAP_SYS_RESOURCE CAP_MKNOD CAP_SETFCAP CAP_SYSLOG CAP_BPF"
).split()


def give_up(*, hooks: bool) -> None:
    """Only this thread's, and those of the threads and programs that it starts. Raises `HostError`."""
    try:
        mask = process.capability_mask(KEPT) & process.permitted_capabilities()
        if not hooks:
            process.drop_bounding(process.capability_mask(KEPT))
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
