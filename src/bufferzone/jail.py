"""What a started helper keeps, as data, and how the child gets rid of everything else.

A helper sees a read-only root of its own (tmpfs) with the files listed in `Jail.binds`, a handful of device
nodes, no /proc, no network, no other process, and the descriptors it was given. It runs under its own uid,
without capabilities and without the means to gain any. Refuses: donated directories (an open directory is a
way out).

Root of a user namespace (rootless Podman) gets the same, with uids from the namespace's own map. Where that
maps one id alone, these are lost: the own uid (the helper could be signalled and traced by other programs of
that user), dropping supplementary groups, and virtiofsd cannot give files to other owners. Without any root
the same steps run inside a user namespace made for the helper, and the PID namespace is lost too.
"""

from __future__ import annotations

import fcntl
import os
import resource

from bufferzone import spawn
from bufferzone.errors import BugError, HostError
from bufferzone.linux import allowlist, identity, landlock, newroot, process
from bufferzone.linux import mount as mnt
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bufferzone.linux.allowlist import AllowList

# Own uids: 2_000_000_000 up. Above what useradd hands out as subuids (login.defs: SUB_UID_MAX 600100000) and
# systemd's containers (up to 1879048191), below its foreign uids (2147352576 up) and the 2147483647 up that
# podman's manual recommends for the `containers` user. systemd.io/UIDS-GIDS calls 1879048192 to 2147352575
# unused.
UID_BASE = 2_000_000_000
UID_SLOTS = 32_768
#: what /proc/self leads to in a jail that has `own_proc`
OWN_PROC = "/proc/1"
_FLAGS = {
    "ipc": process.CLONE_NEWIPC,
    "uts": process.CLONE_NEWUTS,
    "net": process.CLONE_NEWNET,
    "cgroup": process.CLONE_NEWCGROUP,
}


#: no memory of a guest in a core dump, no message queues, nobody before everybody else
_LIMITS = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_RTPRIO, 0),
    (resource.RLIMIT_NICE, 0),
)


class JailBind(Record):
    """A file or tree of the host in the jail: `source` is a path or an open descriptor, `target` absolute in
    the jail.

    `follow`: mounts below `source` come along as they are (`writable` is about the top one), and those made
    later below a shared `source` appear in the jail too (slave propagation).
    """

    source: str | int
    target: str
    writable: bool = False
    follow: bool = False


class Jail(Record):
    """What a helper keeps.

    `calls` are the system calls that it may make. `restricted` holds where the kernel has Landlock; its
    paths are those of the new root.
    `capabilities` are held by nobody unless named; with `user_namespace` (identity map of all ids) they count
    against the inodes in the jail's root and nothing else of the host. `devices` are names in /dev,
    `owned_devices` the ones that the helper's uid shall own (/dev/kvm is root's on many hosts). `proc` are
    names below /proc that stay visible (`self/fd`), `own_proc` files of /proc/self that are there as copies
    that look like a process's own: profiles of AppArmor ask for a number and the owner.
    `keep_fds` keep their numbers, 3 or above; `log_fd`
    becomes stdout and stderr. `network` is a descriptor of the network namespace to be in, -1: a new one, if
    `namespaces` has `net`. `heeds` are signals that it uses itself. `limits`, beside those that all have, are
    (resource, value) pairs, lowered if higher. `cgroups` are descriptors of `cgroup.procs` files to join.
    """

    name: str
    uid: int
    gid: int
    log_fd: int
    calls: AllowList
    keep_fds: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    user_namespace: bool = False
    binds: tuple[JailBind, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = ("null", "zero", "urandom")
    owned_devices: tuple[str, ...] = ()
    proc: tuple[str, ...] = ()
    own_proc: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ("ipc", "uts", "net", "pid")
    network: int = -1
    heeds: tuple[int, ...] = ()
    cgroups: tuple[int, ...] = ()
    limits: tuple[tuple[int, int], ...] = ()
    restricted: landlock.Rules | None = None


class UidLease:
    """Two uids (`vmm`, `helper`) that no other live sandbox on this machine has, or twice our own where there
    are no others. Released by `close` or by dying."""

    def __init__(self, vmm: int, helper: int, lock_fd: int) -> None:
        self.vmm, self.helper = vmm, helper
        self._lock_fd = lock_fd

    def close(self) -> None:
        """Give the uids back. May be called twice."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> UidLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def allocate_uid(run_dir: str) -> UidLease:
    """The first free pair of uids, held by a lock on `run_dir`/uids/SLOT; raises HostError when all are
    taken.

    The lock files stay: removing one that another process is about to lock would let two hold the same slot.
    """
    ids = range(UID_BASE, UID_BASE + 2 * UID_SLOTS) if identity.is_real_root() else identity.spare_ids()
    if os.geteuid() != 0 or len(ids) < 2:
        return UidLease(os.geteuid(), os.geteuid(), -1)
    directory = os.path.join(run_dir, "uids")
    for path in (run_dir, directory):
        os.makedirs(path, mode=0o700, exist_ok=True)
    for slot in range(len(ids) // 2):
        fd = os.open(
            os.path.join(directory, str(slot)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return UidLease(ids[2 * slot], ids[2 * slot + 1], fd)
    raise HostError(f"all {len(ids)} uids for sandboxes are in use", code="no-uid")


def library_view() -> tuple[tuple[JailBind, ...], tuple[tuple[str, str], ...]]:
    """Binds and symbolic links with which a dynamically linked program starts: the library directories,
    read-only.

    Whole directories and not each program's closure: QEMU loads its accelerator with dlopen, and nothing in
    them is secret. Links such as /lib -> usr/lib (merged /usr) are repeated as they are.
    """
    binds, links = [], []
    for directory in ("/lib", "/lib64"):
        if os.path.islink(directory):
            links.append((directory, os.readlink(directory)))
    for directory in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib/x86_64-linux-gnu", "/lib64"):
        if os.path.isdir(directory) and not any(directory.startswith(link) for link, _ in links):
            binds.append(JailBind(source=directory, target=directory))
    return tuple(binds), tuple(links)


def start(argv: Sequence[str], jail: Jail) -> spawn.Child:
    """Start `argv` in `jail`; it dies by SIGKILL when this thread ends, and heeds no signal that asks it to.
    Raises HostError; then nothing is left.

    Takes no ownership: the caller still has to close its copies of the donated descriptors.
    """
    if any(fd < 3 for fd in jail.keep_fds):
        raise BugError(f"donated descriptors of {jail.name} must be 3 or above: {jail.keep_fds}")
    rights = _Rights()

    def enter(talk: spawn.Conversation) -> Callable[[], object]:
        _enter(jail, talk, rights)
        return _confine(argv, jail, talk)

    separate = rights.root and "pid" in jail.namespaces
    return spawn.start(
        jail.name, argv, enter, pid_namespace=separate, deaf=True, heeds=jail.heeds, attend=_attend
    )


class _Rights:
    """What we may do, found out before the child has left /proc behind. `root`: of any user namespace."""

    def __init__(self) -> None:
        self.root = os.geteuid() == 0
        self.real_root = identity.is_real_root()
        self.may_set_groups = identity.may_set_groups()


def _attend(topic: str, pid: int) -> None:
    if topic == "maps":
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/self/{kind}") as ours:
                ranges = [line.split() for line in ours]
            with open(f"/proc/{pid}/{kind}", "w") as theirs:
                theirs.write("".join(f"{inside} {inside} {count}\n" for inside, _, count in ranges))


def _enter(jail: Jail, talk: spawn.Conversation, rights: _Rights) -> None:
    os.umask(0o022)  # the caller's may hide the root we build from the uid that is to use it
    talk.step = "join the cgroup"
    for fd in jail.cgroups:
        os.write(fd, b"0")
    flags = process.CLONE_NEWNS
    for name in jail.namespaces:
        flags |= _FLAGS.get(name, 0)
    if not rights.root:
        talk.step = "create a user namespace"
        _map_own_ids_only(flags)
    trees = [(_tree(bind, talk), bind.target) for bind in jail.binds]
    trees += [
        (_tree(JailBind(source=f"/proc/{name}", target="/"), talk), f"/proc/{name}") for name in jail.proc
    ]
    nodes = [_device(name, jail, talk) for name in jail.devices + jail.owned_devices]
    if rights.root:
        talk.step = "create namespaces"
        process.unshare(flags)
    if jail.network >= 0:
        talk.step = "join the network namespace"
        process.setns(jail.network, process.CLONE_NEWNET)
    talk.step = "make the mounts private"
    mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
    talk.step = "build the root"
    newroot.enter(trees, nodes, *_own_proc(jail))
    if jail.user_namespace and rights.root:
        talk.step = "create a user namespace"
        process.unshare(process.CLONE_NEWUSER)
        talk.ask("maps")
    _arrange_descriptors(jail, talk)
    for kind, value in (*_LIMITS, *jail.limits):
        soft, hard = (v if v >= 0 else value for v in resource.getrlimit(kind))
        resource.setrlimit(kind, (min(soft, value), min(hard, value)))
    _change_credentials(jail, talk, rights)


def _own_proc(jail: Jail) -> tuple[list[tuple[str, str]], list[newroot.Text]]:
    """(links, texts) for the new root: /proc/self leads to a directory that is named like a process's."""
    texts = []
    for name in jail.own_proc:
        with open(f"/proc/self/{name}", "rb") as file:
            texts.append(
                newroot.Text(path=f"{OWN_PROC}/{name}", text=file.read(), owner=(jail.uid, jail.gid))
            )
    links = [("/proc/self", os.path.basename(OWN_PROC))] if texts else []
    return [*jail.links, *links], texts


def _change_ids(jail: Jail, rights: _Rights) -> None:
    """Become the jail's user. A device of the host's that only our own user or groups may open keeps those:
    without real root there is no node of our own.
    """
    uid, gid = jail.uid, jail.gid
    if jail.owned_devices and not rights.real_root:
        if not _would_reach(jail):
            uid, gid = os.geteuid(), os.getegid()
    elif rights.may_set_groups:
        os.setgroups(())
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _would_reach(jail: Jail) -> bool:
    """Whether the jail's user, in our groups, may open its devices."""
    uid, gid = os.geteuid(), os.getegid()
    os.setegid(jail.gid)
    os.seteuid(jail.uid)
    try:
        names = [f"/dev/{name}" for name in jail.owned_devices]
        return all(os.access(name, os.R_OK | os.W_OK, effective_ids=True) for name in names)
    finally:
        os.seteuid(uid)
        os.setegid(gid)


def _map_own_ids_only(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    process.unshare(process.CLONE_NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _tree(bind: JailBind, talk: spawn.Conversation) -> int:
    """A detached, restricted copy of a host tree. Made before we leave the caller's mount namespace."""
    talk.step = f"open {bind.source}"
    if isinstance(bind.source, int):
        fd = mnt.open_tree("", at=bind.source, recursive=bind.follow)
    else:
        fd = mnt.open_tree(bind.source, recursive=bind.follow)
    kind = mnt.MS_SLAVE if bind.follow else mnt.MS_PRIVATE
    add = mnt.MOUNT_ATTR_NOSUID | mnt.MOUNT_ATTR_NODEV
    mnt.set_attributes(fd, add=add, propagation=kind, recursive=bind.follow)
    if not bind.writable:
        mnt.set_attributes(fd, add=mnt.MOUNT_ATTR_RDONLY, recursive=False)
    return fd


def _device(name: str, jail: Jail, talk: spawn.Conversation) -> newroot.Node:
    path = f"/dev/{name}"
    talk.step = f"open {path}"
    owner = (jail.uid, jail.gid) if name in jail.owned_devices else None
    tree = mnt.open_tree(path, recursive=False)
    return newroot.Node(name=name, tree=tree, number=os.stat(path).st_rdev, owner=owner)


def _arrange_descriptors(jail: Jail, talk: spawn.Conversation) -> None:
    talk.step = "arrange descriptors"
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(jail.log_fd, 1)
    os.dup2(jail.log_fd, 2)
    for fd in jail.keep_fds:
        os.set_inheritable(fd, True)
    process.close_all_but(*jail.keep_fds, *talk.descriptors)


def _change_credentials(jail: Jail, talk: spawn.Conversation, rights: _Rights) -> None:
    talk.step = "drop privileges"
    mask = process.capability_mask(list(jail.capabilities))
    process.drop_bounding(mask)
    if mask:
        # creating a file as root of the guest and turning back must not cost virtiofsd its capabilities
        process.set_securebits(process.SECBIT_NO_SETUID_FIXUP | process.SECBIT_NOROOT)
    if rights.root:
        _change_ids(jail, rights)
    process.set_capabilities(effective=mask, permitted=mask, inheritable=mask)
    process.set_ambient(mask)
    process.set_no_new_privileges()
    # a change of credentials clears it; the question finds out whether the parent died before
    process.die_with_parent()
    talk.ask("go")


def _confine(argv: Sequence[str], jail: Jail, talk: spawn.Conversation) -> Callable[[], object]:
    """Load the filters; what is returned becomes the program, which none of its successors can."""
    if jail.restricted is not None:
        talk.step = "give up files and ports (Landlock)"
        landlock.restrict(jail.restricted)
    talk.step = "load the system call filter"
    execution = process.Execution(argv)
    program = allowlist.program(jail.calls, execution.addresses)
    process.load_seccomp(allowlist.quiet_program(jail.calls))
    process.load_seccomp(program, process.SECCOMP_FILTER_FLAG_LOG)
    return execution.now
