"""Runs OCI hooks on the host: state on stdin, in the caller's namespaces, with their time limit. As with
runc they begin in the bundle, with an ordinary umask.

createContainer too, which begins in the root file system: its path is the host's. They run before the root is
shared with the guest, so that what they mount there is shared too, and in our mount namespace alone.

Source: runtime-spec 1.2.0 config.md "POSIX-platform Hooks", runtime.md "Lifecycle". Safe to call from any
thread (posix_spawn, no fork).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from bufferzone.errors import HostError
from bufferzone.linux import apart, process
from bufferzone.linux.ignoring import ignoring
from bufferzone.model import Hook
from bufferzone.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from bufferzone.sandbox.container import Container

_STDERR_LIMIT = 4096


def run_hooks(name: str, hooks: tuple[Hook, ...], state: bytes, bundle: str) -> None:
    """Run `hooks` in order, in `bundle`; raises `HostError` naming the first that fails, cannot start or runs
    out of time.
    """
    for index, hook in enumerate(hooks):
        _run(f"{name} hook {index} ({hook.path})", hook, state, bundle)


def run_all(
    name: str, hooks: tuple[Hook, ...], state: bytes, bundle: str, warn: Callable[[str], None]
) -> None:
    """Run `hooks` in order, whichever of them fails: that is a warning each, "and the remaining hooks and
    lifecycle continue as if the hook had succeeded" (runtime.md "Lifecycle", poststart and poststop).
    """
    for index, hook in enumerate(hooks):
        try:
            _run(f"{name} hook {index} ({hook.path})", hook, state, bundle)
        except HostError as error:
            warn(error.line())


def early(failed: ExitStack, run: Callable[[Container, str, str], None]) -> Callable[[Container], None]:
    """What runs a container's hooks before its start, each stage by `run(container, stage, status)`. When
    `failed` is closed after that, poststop hooks are what runs last: where a hook fails "continue the
    lifecycle at step 12" (runtime.md "Lifecycle", steps 5 to 7), whose end they are.
    """
    begun: list[Container] = []

    def begin(container: Container) -> None:
        begun.append(container)
        for stage in ("prestart", "createRuntime", "createContainer"):
            run(container, stage, "creating")

    def poststop() -> None:
        for container in begun:
            run(container, "poststop", "stopped")

    failed.callback(poststop)
    return begin


def inheriting(hooks: dict[str, tuple[Hook, ...]], pid: int) -> dict[str, tuple[Hook, ...]]:
    """The same hooks with an environment each: where they name none the one that process `pid` was started
    with. That process is the verb or was forked by it, so the environment is the runtime's, as with runc,
    crun and runsc. Where it cannot be read, the hook gets ours.
    """
    if all(hook.env is not None for stage in hooks.values() for hook in stage):
        return hooks
    env = _environment_of(pid)
    return {
        name: tuple(replace(hook, env=env) if hook.env is None else hook for hook in stage)
        for name, stage in hooks.items()
    }


def _environment_of(pid: int) -> tuple[str, ...] | None:
    if pid == os.getpid():
        return None  # what was set since counts too
    found: bytes | None = None
    gone = ignoring(errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM)
    with gone, open(f"/proc/{pid}/environ", "rb") as file:
        found = file.read()
    return None if found is None else tuple(os.fsdecode(entry) for entry in found.split(b"\0") if entry)


def _run(label: str, hook: Hook, state: bytes, bundle: str) -> None:
    with open(os.memfd_create("state", os.MFD_CLOEXEC), "w+b", buffering=0) as stdin:
        stdin.write(state)
        stdin.seek(0)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            pid = apart.run(lambda: _start(label, hook, bundle, stdin.fileno(), write_end))
        except HostError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
    try:
        status, said = _wait(pid, hook.timeout_s, read_end)
    finally:
        os.close(read_end)
    if status is None:
        raise HostError(f"{label} ran longer than {hook.timeout_s} s", code="hook-timeout")
    if status != 0:
        text = said.decode("utf-8", "replace").strip()
        raise HostError(f"{label} failed with status {status}: {text}".rstrip(": "), code="hook-failed")


def _start(label: str, hook: Hook, bundle: str, stdin: int, stderr: int) -> int:
    """Start it; this thread, which is made for that, has its own working directory and umask."""
    process.unshare(process.CLONE_FS)
    os.umask(0o022)
    with ignoring(errno.ENOENT, errno.ENOTDIR, errno.EACCES):  # after its end the bundle may be gone
        os.chdir(bundle)
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    if hook.env is None:
        environment = dict(os.environ)
    else:
        environment = dict(entry.split("=", 1) for entry in hook.env if entry.find("=") > 0)
    try:
        return os.posix_spawn(
            hook.path,
            list(hook.args) or [hook.path],
            environment,
            file_actions=actions,
            setsid=True,
            setsigdef=_DEFAULTS,
        )
    except OSError as error:
        raise HostError(f"{label} cannot be started: {error.strerror}", code="hook-failed") from error


_DEFAULTS = [signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def _wait(pid: int, timeout_s: int | None, stderr: int) -> tuple[int | None, bytes]:
    """(exit status as a shell shows it, first words on stderr); None: its process group was killed for its
    time.

    Stderr is read all the while: a full pipe would stop the hook. Its end is not waited for, since a hook may
    leave a process behind that holds it.
    """
    end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    said = bytearray()
    os.set_blocking(stderr, False)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(stderr, select.POLLIN)
    try:
        ended = False
        while not ended and (left_s := end - time.monotonic()) > 0:
            ready = dict(poll.poll(None if timeout_s is None else left_s * 1000))
            ended = pidfd in ready
            if stderr in ready and not _drain(stderr, said):
                poll.unregister(stderr)
        if not ended:
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
    _drain(stderr, said)
    return (None if not ended else code if code >= 0 else 128 - code), bytes(said)


def _drain(fd: int, said: bytearray) -> bool:
    """Read what is there, keeping the first words; False at the end of the file."""
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return True
    said += data[: _STDERR_LIMIT - len(said)]
    return bool(data)
