"""Starts the shim of a new container. Knows its command line and its one line of answer, not what it does."""

from __future__ import annotations

import os
import time

from bufferzone import jsontext, log, programs, state
from bufferzone.client import signals
from bufferzone.client.handshake import error_from, others_in, read_line
from bufferzone.errors import HostError
from bufferzone.oci.host import settings_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.oci import Spec

_LOG = "shim.log"
_READY_FD = 3
#: TTRPC_ADDRESS must not arrive: it would speak to containerd
_KEPT_ENVIRONMENT = ("HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")


def new_container(root: str, id: str, spec: Spec) -> str:
    """Make the state directory with status `creating`; after a failure `removal.discard` removes it."""
    directory = state.create(root, id)
    try:
        state.write_state(
            directory,
            id=id,
            status=state.CREATING,
            pid=0,
            bundle=spec.bundle,
            rootfs=spec.rootfs,
            created=timestamp(time.time_ns()),
            owner=user_name(os.geteuid()),
            annotations=spec.annotations,
        )
    except BaseException:
        state.remove(directory)
        raise
    return directory


def timestamp(ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ns // 10**9))}.{ns % 10**9:09d}Z"


def user_name(uid: int) -> str:
    """The user's name, or the number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _command(directory: str, bundle: str, program: str, *flags: str) -> list[str]:
    root, id = os.path.split(directory)
    arguments = ["-id", id, "-root", root, "-bundle", bundle, *flags]
    if log.DEBUG in os.environ:
        arguments.append("-debug")
    return programs.argv("shim", *arguments, program=program)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return {**programs.ENVIRONMENT, **kept}


def _spawn(command: list[str], log: str, ready: int) -> int:
    """Start a program of ours in its own session: stdio /dev/null and the log, `ready` as 3, nothing else."""
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
    ]
    if ready >= 0:
        actions.append((os.POSIX_SPAWN_DUP2, ready, _READY_FD))
    actions += _close_from(_READY_FD + (ready >= 0))
    try:
        return os.posix_spawn(
            command[0],
            command,
            _environment(),
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=range(1, 32),  # conmon and Python ignore SIGPIPE, and ignoring is inherited
        )
    except OSError as error:
        raise HostError(f"cannot start the shim: {error.strerror}", code="shim-start") from error


def _close_from(first: int) -> list[Any]:
    """What closes every descriptor from `first` on in the new program. glibc refuses to close one that the
    limit does not allow (RLIMIT_NOFILE can be lowered below what is open): such a one is close-on-exec from
    now on.
    """
    most = os.sysconf("SC_OPEN_MAX")
    actions = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        if first <= fd < most:
            actions.append((os.POSIX_SPAWN_CLOSE, fd))
        elif fd >= first and os.get_inheritable(fd):
            os.set_inheritable(fd, False)
    return actions


def start_shim(
    directory: str,
    spec: Spec,
    program: str,
    restore_from: str = "",
    meanwhile: Callable[[], None] = lambda: None,
    *,
    scope: bool = False,
    found: Callable[[int], None] = lambda others: None,
) -> int:
    """Start the shim of a new container and wait until its socket listens; returns its pid.

    One whose VM has the network namespace that the container names is joined. One that waits in the pool is
    taken, if there is one; else it is our child. Raises what the shim reports,
    or `HostError` with the last line of its log when it died, reaped. With `restore_from`, the directory of a
    checkpoint, the VM is the one that was saved there. `meanwhile` is what the caller can do while one that
    was taken gets ready; whether it is called is not certain. `scope`: its cgroup is a scope of
    systemd's, which config.json does not name. `found` is told how many processes of others are in its
    cgroup.
    """
    entry = netns_entry(os.path.dirname(directory), spec)
    if entry:
        from bufferzone.client import join

        if pid := join.join(directory, entry, restore_from):
            return pid
    flags = ["-restore-from", restore_from] if restore_from else []
    flags += ["-systemd-cgroup"] if scope else []
    flags += ["-settings", jsontext.dumps(spec.chosen)] if spec.chosen else []
    if flags:
        return _start_shim(directory, spec.bundle, program, *flags, found=found)
    settings = settings_of(spec)
    if not wants_pool(settings):
        return _start_shim(directory, spec.bundle, program, found=found)
    from bufferzone.client import pool_claim

    try:
        pid = pool_claim.claim(directory, spec, settings, meanwhile=meanwhile, found=found)
        return pid or _start_shim(directory, spec.bundle, program, found=found)
    except pool_claim.NoKeeper:
        pid = _start_shim(directory, spec.bundle, program, found=found)
        shape = jsontext.dumps(pool_claim.shape(spec, settings))
        with log.passing_over("begin a pool", HostError):  # the next start tries again
            start_keeper(os.path.dirname(directory), shape, program)
        return pid


def netns_entry(root: str, spec: Spec) -> str:
    """The name of the socket of the shim whose VM has the container's network namespace; empty: none has."""
    network = spec.namespace("network")
    if network is None or not network.get("path"):
        return ""
    try:
        found = os.stat(network["path"])
        entry = state.netns_entry(root, found.st_dev, found.st_ino)
        os.lstat(entry)
    except OSError:
        return ""
    return entry


def wants_pool(settings: Settings) -> bool:
    """Whether VMs of these settings wait for containers: of root, if of a user namespace, that share their
    root file system, which no limit of a disk or network goes with.
    """
    shared = settings.rootfs == "virtiofs" and not settings.rootfs_image
    taps = settings.host_network != "passt"  # a VM that waits has a tap
    limited = settings.disk_kib_per_s or settings.disk_ops_per_s or settings.network_kib_per_s
    served = shared and taps and not limited
    return bool(settings.pool_size and settings.templates and served and os.geteuid() == 0)


def start_keeper(root: str, shape: str, program: str, ready: int = -1) -> int:
    """Start the pool's keeper for containers below `root`; returns its pid, our child.

    `shape` (JSON) is what it begins with. It ends at once when there is one already. What it writes to the
    descriptor `ready` is one line: `ready`, or why not. Raises `HostError`.
    """
    directory = os.path.join(root, state.POOL)
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot create {directory}: {error.strerror}", code="state-dir") from error
    told = ["-ready-fd", str(_READY_FD)] if ready >= 0 else []
    command = programs.argv("pool", "-root", root, "-shape", shape, *told, "keep", program=program)
    return _spawn(command, os.path.join(directory, "keeper.log"), ready)


def _start_shim(directory: str, bundle: str, program: str, *flags: str, found: Callable[[int], None]) -> int:
    reader, writer = os.pipe()
    try:
        command = _command(directory, bundle, program, *flags, "-ready-fd", str(_READY_FD), "serve")
        pid = _spawn(command, os.path.join(directory, _LOG), writer)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        state.write_owner(directory, pid)
        line = read_line(reader)
    except HostError:  # nobody else knows of it yet: it would go on in a directory that is removed
        os.kill(pid, signals.KILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(reader)
    others = others_in(line, b"ready")
    if others is not None:
        found(others)
        return pid
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if line:
        raise error_from(line)
    if status < 0:  # its log then tells what went before, not why
        hint = "out of memory? see dmesg on the host" if status == -9 else ""
        raise HostError(
            f"the shim was killed (signal {-status}) before it listened", hint=hint, code="shim-died"
        )
    hint = last_log_line(directory) or "it wrote nothing"
    raise HostError(f"the shim ended with status {status} before it listened", hint=hint, code="shim-died")


def last_log_line(directory: str) -> str:
    """The last line the shim logged, for a person who asks why."""
    try:
        with open(os.path.join(directory, _LOG), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return ""
    return lines[-1].decode("utf-8", "replace") if lines else ""


def clean_up(directory: str, bundle: str, program: str) -> None:
    """Run the shim's `delete` action after the shim died; raises `HostError` with what it said."""
    pid = _spawn(_command(directory, bundle, program, "delete"), os.path.join(directory, _LOG), -1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        last = last_log_line(directory)
        raise HostError(f"clean-up failed: {last or f'exit status {status}'}", code="clean-up")
