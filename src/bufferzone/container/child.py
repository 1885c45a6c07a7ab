"""From fork to execve: what a child of the agent does, in order. Nothing here runs in the agent itself.

The order is runc's: cgroup, user namespace (the agent writes the maps), the other namespaces, names and
sysctls, file systems, checks, READY, wait for START, hooks, identity, execve. Every failure travels
over the channel.
"""

from __future__ import annotations

import _socket
import os

from bufferzone.container import channel as ch
from bufferzone.container import hooks, netfilter, nodes, program, rootfs, signals, sysctls
from bufferzone.container.jsontext import dumps
from bufferzone.container.mounts import describe
from bufferzone.errors import BufferzoneError, GuestError, SpecError
from bufferzone.linux import limits, terminal
from bufferzone.linux import process as lp
from bufferzone.wire.process_keys import FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from bufferzone.container.channel import ChildEnd
    from bufferzone.container.child_spec import ChildSpec

_OWN_FORK = lp.CLONE_NEWPID | lp.CLONE_NEWTIME  # namespaces that only a child of the unsharing process enters


def main(child_spec: ChildSpec, channel: ChildEnd) -> NoReturn:
    """Become the process of `child_spec`; never returns."""
    try:
        be_nobody([*child_spec.descriptors(), channel.fileno()])
        operation = child_spec.process.get(FILES)
        if operation is not None:
            from bufferzone.container import files  # as long as an import reads the guest's files
        os.write(child_spec.procs, b"0")
        if not child_spec.init_pid:
            netfilter.load_for(child_spec.process)
            sysctls.write_network(child_spec.config.get("linux") or {})
        ahead = _nodes_ahead(child_spec)
        _enter_namespaces(child_spec, channel)
        if child_spec.stdio is not None:
            program.use_stdio(child_spec.stdio)
        for fd in child_spec.descriptors():
            os.close(fd)
        if operation is not None:
            channel.send(ch.READY)
            channel.expect(ch.START)
            files.serve(operation, channel, child_spec)
        if child_spec.init_pid:
            found = _join_container(child_spec, channel)
        else:
            found = _make_container(child_spec, channel, ahead)
        wanted = _start_hooks(child_spec)
        channel.send(ch.READY)
        channel.expect(ch.START)
        _run_hooks(child_spec, wanted)
        program.execute(found, channel, child_spec)
    except BufferzoneError as error:
        channel.fail(error)
    except OSError as error:
        channel.fail(GuestError(f"cannot set up the container process: {describe(error)}"))
    except BaseException as error:
        channel.fail(error)


def be_nobody(descriptors: list[int]) -> None:
    """Give up what is the agent's: signal handlers, session, and descriptors but for these and stdio."""
    signals.restore()
    _close_all_but(descriptors)
    lp.set_dumpable(
        False
    )  # a container must not trace us while we are between its namespaces (CVE-2016-9962)
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(0o022)


def _nodes_ahead(child_spec: ChildSpec) -> dict[int, int]:
    """See `nodes.make_ahead`; none where the container can make its own, or is there already."""
    flags = child_spec.unshares
    for _, kind in child_spec.joins:
        flags |= kind
    if child_spec.init_pid or not flags & lp.CLONE_NEWUSER:
        return {}
    return nodes.make_ahead(child_spec.config)


def _make_container(child_spec: ChildSpec, channel: ChildEnd, ahead: dict[int, int]) -> program.Program:
    """The first process: everything up to and including the new root."""
    spec = child_spec.config
    _set_names(child_spec)
    sysctls.write_rest(spec.get("linux") or {})
    root = rootfs.prepare(spec, ahead)
    if child_spec.process.get("terminal"):
        _use_terminal(child_spec, channel, *rootfs.open_terminal(root))
    rootfs.enter(root, spec)
    os.close(root)
    return program.check(child_spec.process)


def _join_container(child_spec: ChildSpec, channel: ChildEnd) -> program.Program:
    """One more process: the root is already the container's."""
    if child_spec.process.get("terminal"):
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        terminal.unlock(master)
        _use_terminal(
            child_spec, channel, master, terminal.peer(master, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        )
    return program.check(child_spec.process)


def _use_terminal(child_spec: ChildSpec, channel: ChildEnd, master: int, slave: int) -> None:
    channel.send(ch.TERMINAL, fd=master)
    os.close(master)
    program.use_terminal(slave, child_spec.process)


def _close_all_but(keep: list[int]) -> None:
    """Close what belongs to the agent: above all the ends of other containers' pipes, whose EOF we would
    hold up.
    """
    previous = 2
    for fd in sorted(set(keep)):
        if fd > previous + 1:
            lp.close_range(previous + 1, fd - 1)
        previous = max(fd, previous)
    lp.close_range(previous + 1)


def _enter_namespaces(child_spec: ChildSpec, channel: ChildEnd) -> None:
    """The namespaces left to us: the agent has dealt with pid and time unless a user namespace must own
    them.
    """
    joins = [(fd, kind) for fd, kind in child_spec.joins if not kind & _OWN_FORK]
    in_user = bool(child_spec.unshares & lp.CLONE_NEWUSER)
    for fd, kind in sorted(joins, key=lambda join: join[1] != lp.CLONE_NEWUSER):
        lp.setns(fd, kind)
        if kind == lp.CLONE_NEWUSER:
            _become_root_of_namespace()
            in_user = True
    if child_spec.unshares & lp.CLONE_NEWUSER:
        lp.unshare(lp.CLONE_NEWUSER)
        channel.request(ch.MAP)
        _become_root_of_namespace()
    if in_user and child_spec.unshares & _OWN_FORK:
        _fork_into(child_spec.unshares & _OWN_FORK, time_offsets(child_spec.config), channel)
    rest = child_spec.unshares & ~(_OWN_FORK | lp.CLONE_NEWUSER)
    if rest:
        lp.unshare(rest)


def _become_root_of_namespace() -> None:
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    lp.set_dumpable(False)


def _fork_into(flags: int, offsets: str, channel: ChildEnd) -> None:
    """New pid and time namespaces owned by our user namespace.

    The child goes on; it becomes the agent's at our exit.
    """
    lp.unshare(flags)
    lp.set_dumpable(True)  # else /proc/self is not ours to write
    write_offsets(offsets)
    lp.set_dumpable(False)
    pid = os.fork()
    if pid:
        channel.send(ch.PID, str(pid).encode())
        os._exit(0)
    channel.expect(ch.DONE)
    os.setsid()


def time_offsets(spec: dict[str, Any]) -> str:
    """linux.timeOffsets in the format of time_namespaces(7)."""
    lines = []
    for clock, offset in ((spec.get("linux") or {}).get("timeOffsets") or {}).items():
        if clock not in ("monotonic", "boottime"):
            raise SpecError(f"linux.timeOffsets: unknown clock: {clock}")
        lines.append(f"{clock} {int(offset.get('secs') or 0)} {int(offset.get('nanosecs') or 0)}\n")
    return "".join(lines)


def write_offsets(offsets: str) -> None:
    """Offsets of the time namespace our children will be in."""
    if offsets:
        fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, offsets.encode())
        os.close(fd)


def _set_names(child_spec: ChildSpec) -> None:
    hostname, domain = (
        str(child_spec.config.get("hostname") or ""),
        str(child_spec.config.get("domainname") or ""),
    )
    joined = any(kind == lp.CLONE_NEWUTS for _, kind in child_spec.joins)
    if (hostname or domain) and not (joined or child_spec.unshares & lp.CLONE_NEWUTS):
        raise SpecError("hostname: unable to set hostname without a private UTS namespace")
    if hostname:
        _socket.sethostname(hostname)
    if domain:
        limits.set_domain_name(domain)


def _start_hooks(child_spec: ChildSpec) -> list[dict[str, Any]]:
    """The startContainer hooks of a container's first process."""
    if child_spec.init_pid:
        return []
    return (child_spec.config.get("hooks") or {}).get("startContainer") or []


def _run_hooks(child_spec: ChildSpec, wanted: list[dict[str, Any]]) -> None:
    if wanted:
        state = {
            "ociVersion": child_spec.config.get("ociVersion") or "1.0.2",
            "id": child_spec.id,
            "status": "created",
            "pid": os.getpid(),
            "bundle": child_spec.config.get("bundle") or "",
            "annotations": child_spec.config.get("annotations") or {},
        }

        def become() -> None:
            program.take_identity(child_spec.process, child_spec.seccomp)

        hooks.run_all("startContainer", wanted, dumps(state), become)
