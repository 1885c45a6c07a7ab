"""What a jailed helper should hold at most, compared with what it holds. Pure: no /proc here.

The same rules for every thread: a filter that one thread lacks is a filter that a guest gets around.
"""

from __future__ import annotations

from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.audit.finding import Collector
    from bufferzone.audit.held import Descriptor, Held

#: what virtiofsd does for root of the guest, in its own user namespace only; see storage/virtiofs
_VIRTIOFSD = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_SETGID CAP_SETUID CAP_MKNOD CAP_SETFCAP"
#: by number, since a name is what somebody called it: null, zero, random, urandom
_DEVICES = ("c 1:3", "c 1:5", "c 1:8", "c 1:9")
_KVM, _TUN, _VHOST_NET = "c 10:232", "c 10:200", "c 10:238"
_FILTER = 2  # SECCOMP_MODE_FILTER
#: what the kernel adds to the path of a file that has no name any more, as those that a jail shows often have
_DELETED = " (deleted)"


class Rules(Record):
    """What a kind of helper may have: `capabilities` in a user namespace of its own, at least so many
    `filters`, namespaces `apart` from the host's, descriptors of what is at or below `files`, and those that
    may be written at or below `writable`, and `devices` beside the harmless ones.
    """

    capabilities: tuple[str, ...] = ()
    filters: int = 1
    apart: tuple[str, ...] = ("mnt", "pid", "net", "ipc", "uts")
    files: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


RULES = {
    "vmm": Rules(
        filters=2,
        files=("/memory", "/saved-memory", "/kernel", "/initrd", "/boot", "/run"),
        writable=("/memory", "/run"),  # Firecracker and we meet in /run, a few files in memory
        devices=(_KVM, _TUN, _VHOST_NET),
    ),
    # its root is the shared tree, which it sees as / or as /tree
    "virtiofsd": Rules(
        capabilities=tuple(_VIRTIOFSD.split()), filters=2, files=("/tree", "/proc"), writable=("/tree", "/")
    ),
    # it opens connections for the guest: the host's network is what it is for
    "passt": Rules(apart=("mnt", "pid", "ipc", "uts")),
}


def check(
    held: Held, rules: Rules, findings: Collector, host: dict[str, int], host_root: tuple[int, int]
) -> None:
    """Tell what is more than the rules allow; `host`: the numbers of the host's namespaces."""
    own_users = held.namespaces.get("user") != host.get("user")
    if any(0 in thread.uids for thread in held.threads):
        # the Rust virtiofsd insists on uid 0, and is that in a user namespace with an identity map
        findings.add("helper-root", "low" if own_users else "high", "it runs as uid 0")
    _capabilities(held, rules, findings, own_users=own_users)
    _filters(held, rules, findings)
    for kind in rules.apart:
        if kind in host and held.namespaces.get(kind) == host[kind]:
            severity = "medium" if kind == "uts" else "high"
            findings.add(f"namespace-{kind}", severity, f"its {kind} namespace is the host's")
    if held.root == host_root:
        findings.add("host-root", "high", "its root directory is the host's")
    else:
        _mounts(held, rules, findings)
    for fd in held.descriptors:
        _descriptor(fd, rules, findings)
    if held.limits.get("core") != 0:
        findings.add("core-dumps", "medium", "it may dump core, which holds memory of the guest")
    if held.environment:
        findings.add("helper-environment", "low", f"it has an environment of {held.environment} bytes")
    if held.tracer:
        findings.add("traced", "high", f"process {held.tracer} traces it", "end the debugger")


def _capabilities(held: Held, rules: Rules, findings: Collector, *, own_users: bool) -> None:
    surplus = set(held.capabilities) - set(rules.capabilities if own_users else ())
    if surplus:
        where = "in a user namespace of its own" if own_users else "over the host"
        names = " ".join(sorted(surplus))
        findings.add("capabilities", "low" if own_users else "high", f"it holds {names}, {where}")
    bounding = {name for thread in held.threads for name in thread.capabilities["bounding"]}
    if bounding - set(rules.capabilities) and not own_users:
        findings.add("bounding-set", "medium", f"{len(bounding)} capabilities are in its bounding set")
    if not all(thread.no_new_privileges for thread in held.threads):
        findings.add(
            "no-new-privileges", "high", "a set-id program would give it rights (no_new_privs is off)"
        )


def _filters(held: Held, rules: Rules, findings: Collector) -> None:
    open_ = [thread.tid for thread in held.threads if thread.seccomp != _FILTER]
    if open_:
        findings.add("no-seccomp", "high", f"threads without a system call filter: {_listed(open_)}")
    fewer = [thread.tid for thread in held.threads if 0 < thread.filters < rules.filters]
    if fewer:
        message = f"threads with fewer than {rules.filters} filters: {_listed(fewer)}"
        findings.add(
            "fewer-filters", "low", message, "Debian 12's virtiofsd starts one before its own filter"
        )


def _listed(tids: list[int]) -> str:
    return ", ".join(map(str, tids[:8])) + (" ..." if len(tids) > 8 else "")


def _mounts(held: Held, rules: Rules, findings: Collector) -> None:
    """No device and no set-id program on what it sees; nothing writable but what it is for."""
    for mount in held.mounts:
        # device nodes are bound one by one into a file system that has no others
        if "nodev" not in mount.options and not _below(mount.point, ("/dev",)):
            findings.add(
                "mount-devices", "high", f"device nodes work on its mount {mount.point!a} (no nodev)"
            )
        if "nosuid" not in mount.options:
            findings.add(
                "mount-setid", "medium", f"set-id programs work on its mount {mount.point!a} (no nosuid)"
            )
        if "rw" in mount.options and not _below(mount.point, rules.writable):
            findings.add("mount-writable", "high", f"it may write to its mount {mount.point!a}")


def _descriptor(fd: Descriptor, rules: Rules, findings: Collector) -> None:
    named = f"descriptor {fd.number} is {fd.target!a}"
    if fd.kind in ("socket", "pipe", "anonymous"):
        return
    if fd.kind == "device":
        if fd.device not in (*_DEVICES, *rules.devices):
            findings.add("descriptor-device", "high", f"{named}, the device {fd.device}")
        return
    if fd.target.startswith("/memfd:"):
        return
    place = fd.target.removesuffix(_DELETED)
    ours = _below(place, rules.files) or _below(place, rules.writable)
    if not ours:
        severity = "high" if fd.kind == "directory" or fd.writable else "medium"
        findings.add("descriptor", severity, f"{named}, a {fd.kind} that is not for it")
    elif fd.writable and not _below(place, rules.writable):
        findings.add("descriptor-writable", "high", f"{named}, which it may write to")


def _below(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)
