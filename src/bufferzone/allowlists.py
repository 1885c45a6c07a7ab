"""The system calls of each helper, as data: what it may make, in part or whole, and why the dangerous ones.

Measured at the kernel's tracepoint raw_syscalls:sys_enter while the VM tests ran (cold boot, templates,
checkpoints, pool, hot-plug, balloon, volumes, disks, rootless, passt), with QEMU 7.2 and 10.0, both
virtiofsds, glibc 2.36 and 2.41. To that come what their libraries fall back to, and what an error or an end
by abort(3) needs. `tests/unit/test_allowlists.py` holds the sizes that SECURITY.md tells.
"""

from __future__ import annotations

from bufferzone.linux.allowlist import ALWAYS, AllowList, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bufferzone.linux.allowlist import Alternatives


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: nobody makes these who was not taken over: the process is killed, and its sandbox ends with this reason
FORBIDDEN = _words(
    "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise "  # other processes
    "init_module finit_module delete_module kexec_load kexec_file_load bpf perf_event_open "  # the kernel
    "reboot swapon swapoff acct iopl ioperm settimeofday adjtimex clock_settime clock_adjtime sethostname "
    "setdomainname syslog quotactl quotactl_fd fanotify_init "  # the machine
    "mount umount2 pivot_root open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick "
    "mount_setattr statmount listmount setns open_by_handle_at "  # ways out of its root
    "add_key request_key keyctl"
)
#: tried first by libraries, which do without. clone3 hides its flags in memory, and io_uring's calls are made
#: past every filter
QUIET = dict.fromkeys(("clone3", "io_uring_setup", "userfaultfd", "name_to_handle_at"), ALWAYS)

#: a program that is dynamically linked starts, has threads and memory, waits, and ends, by abort(3) too
_BASE = _words(
    "read write readv writev pread64 pwrite64 close lseek openat newfstatat fstat statx access faccessat "
    "faccessat2 readlink readlinkat munmap brk mremap madvise rt_sigaction rt_sigprocmask rt_sigreturn "
    "sigaltstack arch_prctl set_tid_address set_robust_list rseq prlimit64 getrandom futex exit exit_group "
    "restart_syscall sched_yield sched_getaffinity getpid gettid getuid geteuid getgid getegid uname sysinfo "
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday tgkill fcntl poll ppoll membarrier"
)
#: libnuma, which QEMU and its virtiofsd are linked with, looks what there is when it is loaded
_NUMA = _words("get_mempolicy set_mempolicy")
#: what programs confine themselves further with: it can only take away
_FILTERS = _words("seccomp")

_PROT_WRITE, _PROT_EXEC, _MAP_ANONYMOUS = 2, 4, 0x20
#: no memory that is written and then run: code comes from files, as the loader maps it
_NO_NEW_CODE = {
    "mmap": (
        ((2, _PROT_EXEC, 0),),
        ((2, _PROT_WRITE | _PROT_EXEC, _PROT_EXEC), (3, _MAP_ANONYMOUS, 0)),
    ),
    "mprotect": (((2, _PROT_EXEC, 0),),),
}
_NEW_NAMESPACES = 0x7E020000
_THREAD = 0x10900  # CLONE_THREAD | CLONE_SIGHAND | CLONE_VM
#: threads of the program, and neither processes nor namespaces
_THREADS = {"clone": (((0, _NEW_NAMESPACES | _THREAD, _THREAD),),)}

#: PR_SET_NAME, PR_SET_SECCOMP, PR_CAPBSET_READ, PR_GET_SECUREBITS, PR_SET_TIMERSLACK, PR_MCE_KILL,
#: PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS
_PRCTL = (15, 22, 23, 27, 29, 33, 38, 39)
#: PR_GET_DUMPABLE, PR_SET_DUMPABLE (may be switched off), and what is left of capabilities may be given up:
#: PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_GET_KEEPCAPS, PR_SET_KEEPCAPS
_PRCTL_CONFINES = (*_PRCTL, 3, 4, 24, 28, 47, 7, 8)

# ioctl(2) of QEMU on a tap that was given to it: what it is and its offloads. Not TUNSETIFF, TUNSETOWNER,
# TUNSETPERSIST, TUNATTACHFILTER, TUNSETSTEERINGEBPF, and no SIOC* that changes interfaces.
_TAP = (
    0x800454CF,  # TUNGETFEATURES
    0x800454D2,  # TUNGETIFF
    0x800454D7,  # TUNGETVNETHDRSZ
    0x400454D0,  # TUNSETOFFLOAD
    0x400454D4,  # TUNSETSNDBUF
    0x400454D8,  # TUNSETVNETHDRSZ
    0x400454DC,  # TUNSETVNETLE
    0x400454DE,  # TUNSETVNETBE
)
_FIONBIO, _TCGETS, _TIOCGWINSZ = 0x5421, 0x5401, 0x5413
#: KVM's own ioctls, all of type 0xAE: on /dev/kvm and what comes from it, the only such descriptors there are
_KVM = (((1, 0xFF00, 0xAE00),),)

#: sendmsg and recvmsg: descriptors of the guest's memory for virtiofsd, those of the control channel. memfd:
#: the guest's memory. fallocate: a balloon's holes. socketpair: for virtiofsd's requests
_VMM = (
    _BASE
    | _NUMA
    | _FILTERS
    | _words(
        "preadv pwritev recvmsg sendmsg recvfrom sendto shutdown getsockopt setsockopt getsockname "
        "getpeername socketpair eventfd2 epoll_create1 epoll_ctl epoll_wait epoll_pwait memfd_create "
        "ftruncate fallocate fadvise64 fdatasync fstatfs statfs getdents64 dup dup3 pipe2 signalfd4 "
        "timerfd_create timerfd_settime "
        # a vCPU's thread is woken by a signal, which it eats
        "rt_sigtimedwait rt_sigpending tkill"
    )
)
#: a share's tree, by openat below an O_PATH descriptor and by names in /proc/self/fd: what a guest's root may
#: do to its own files. mknodat makes fifos and whiteouts (the user namespace owns no device); set*id: what is
#: created belongs to who creates it in the guest. chroot, chdir and capset: before it serves
_FILES = _words(
    "preadv pwritev getdents64 statfs fstatfs fchmod fchmodat fchmodat2 fchownat fchown ftruncate fallocate "
    "utimensat linkat symlinkat mkdirat mknodat unlinkat renameat renameat2 fsync fdatasync syncfs "
    "copy_file_range getxattr setxattr listxattr removexattr fgetxattr fsetxattr flistxattr fremovexattr "
    "fchdir chdir chroot umask setresuid setresgid setgroups getgroups capget capset dup "
    "recvmsg sendmsg accept accept4 eventfd2"
)
_FILE_SERVER = _BASE | _FILES | _FILTERS
#: its threads have a working directory of their own: CLONE_FS and no namespace
_OWN_DIRECTORY = {"unshare": (((0, 0xFFFFFFFF, 0x200),),)}


def _list(name: str, calls: frozenset[str], **limited: Alternatives) -> AllowList:
    rules: Mapping[str, Alternatives] = {**_NO_NEW_CODE, "prctl": one_of(0, _PRCTL), **limited}
    return AllowList(name=name, calls=calls, limited=rules, forbidden=FORBIDDEN - calls, quiet=QUIET)


#: TCG translates the guest's code: memory that is written and run is what it lives on
VMM_TCG = AllowList(
    name="QEMU under TCG",
    calls=_VMM | {"mmap", "mprotect"},
    limited={**_THREADS, "prctl": one_of(0, _PRCTL), "ioctl": one_of(1, (*_TAP, _FIONBIO, _TCGETS))},
    forbidden=FORBIDDEN,
    quiet=QUIET,
)
VMM_KVM = _list("QEMU under KVM", _VMM, **_THREADS, ioctl=(*_KVM, *one_of(1, (*_TAP, _FIONBIO, _TCGETS))))
#: attaching to a tap by name, and its offloads
_TAP_BY_NAME = (0x400454CA, 0x400454D0, 0x400454D8)  # TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ
#: linked statically with musl, which makes the old calls; its own filters, one for each kind of thread, are
#: tighter (and are loaded by itself). A vsock and an API of sockets by path: it binds, accepts and connects
FIRECRACKER = _list(
    "Firecracker",
    _BASE
    | _FILTERS
    | _words(
        "open stat lstat dup dup2 pipe2 eventfd2 epoll_create1 epoll_ctl epoll_wait epoll_pwait "
        "timerfd_create timerfd_settime bind listen accept4 connect shutdown getsockopt setsockopt "
        "recvfrom recvmsg sendto sendmsg preadv pwritev fsync fdatasync ftruncate mincore msync tkill "
        "memfd_create"  # a ring of a NIC that is mapped twice
    ),
    **_THREADS,
    socket=one_of(0, (1,)),  # AF_UNIX
    ioctl=(*_KVM, *one_of(1, (*_TAP_BY_NAME, _FIONBIO, _TCGETS, _TIOCGWINSZ))),
)
VIRTIOFSD_C = _list(
    "virtiofsd (C)",
    _FILE_SERVER | _NUMA,
    **_THREADS,
    **_OWN_DIRECTORY,
    prctl=one_of(0, _PRCTL_CONFINES),
)
_SOL_SOCKET, _SO_TYPE, _SO_DOMAIN = 1, 3, 39
#: what Rust's libraries wait with, and openat2: a name is resolved beneath its directory. From 1.14 on
#: getsockopt, whether the channel for its own requests that QEMU hands over is a stream of AF_UNIX, and
#: shutdown, when its connection has ended
VIRTIOFSD_RUST = _list(
    "virtiofsd (Rust)",
    _FILE_SERVER
    | _words(
        "epoll_create1 epoll_ctl epoll_wait epoll_pwait openat2 preadv2 pwritev2 getcwd recvfrom sendto "
        "shutdown"
    ),
    **_THREADS,
    **_OWN_DIRECTORY,
    prctl=one_of(0, _PRCTL_CONFINES),
    ioctl=one_of(1, (_FIONBIO, _TCGETS)),
    getsockopt=tuple(
        ((1, 0xFFFFFFFF, _SOL_SOCKET), (2, 0xFFFFFFFF, option)) for option in (_SO_TYPE, _SO_DOMAIN)
    ),
)
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
#: connections of the host, which it is for; then namespaces, a root and a list of calls of its own
_PASST = _list(
    "passt",
    _BASE
    | _FILTERS
    | _words(
        "bind connect listen accept accept4 shutdown getsockopt setsockopt getsockname getpeername sendto "
        "sendmsg sendmmsg recvfrom recvmsg recvmmsg epoll_create1 epoll_ctl epoll_wait epoll_pwait "
        "timerfd_create timerfd_settime pipe2 splice setgroups setgid setuid setresgid setresuid capget "
        "capset chdir umask unshare mount umount2 pivot_root fstatfs statfs getppid dup2 dup3 getgroups "
        "close_range"
    ),
    # never AF_PACKET, AF_VSOCK or AF_ALG: what it needs of the host's network, and routes to look at
    socket=one_of(0, (_AF_INET, _AF_INET6, _AF_NETLINK)),
    prctl=one_of(0, _PRCTL_CONFINES),
    # SIOCGIFNAME, SIOCGIFFLAGS, SIOCGIFINDEX: questions
    ioctl=one_of(1, (_FIONBIO, _TCGETS, 0x8910, 0x8913, 0x8933)),
)
#: it asks for the system's log each time: no socket of AF_UNIX, since abstract ones of the host are in reach
PASST = AllowList(
    name=_PASST.name,
    calls=_PASST.calls,
    limited=_PASST.limited,
    forbidden=_PASST.forbidden,
    quiet={**QUIET, "socket": one_of(0, (_AF_UNIX,))},
)
#: reads a tree and writes one file
MKFS_EROFS = _list(
    "mkfs.erofs",
    _BASE
    | _words("getdents64 getppid llistxattr lgetxattr listxattr getxattr ftruncate fallocate fsync fdatasync")
    | _words("statfs fstatfs preadv pwritev copy_file_range fadvise64 getcwd chdir fchdir umask lstat stat"),
    **_THREADS,
    ioctl=one_of(
        1, (_TCGETS, _TIOCGWINSZ, 0x1268, 0x80081272)
    ),  # of what it writes to: BLKSSZGET, BLKGETSIZE64
)

#: what neither a shim whose VM runs needs nor a program that it starts, hooks left out. It mounts, joins
#: namespaces, loads device filters of cgroups and confines helpers; no list of what it may do would be short
NOT_FOR_A_SHIM = _words(
    "ptrace process_vm_readv process_vm_writev kcmp process_madvise "
    "init_module finit_module delete_module kexec_load kexec_file_load perf_event_open userfaultfd "
    "reboot swapon swapoff acct iopl ioperm settimeofday adjtimex clock_settime clock_adjtime sethostname "
    "setdomainname syslog quotactl quotactl_fd fanotify_init open_by_handle_at modify_ldt vhangup "
    "add_key request_key keyctl io_uring_setup io_uring_enter io_uring_register lookup_dcookie "
    "create_module get_kernel_syms query_module nfsservctl uselib ustat sysfs _sysctl remap_file_pages"
)

#: which program has which
ALL = (VMM_KVM, VMM_TCG, FIRECRACKER, VIRTIOFSD_C, VIRTIOFSD_RUST, PASST, MKFS_EROFS)
