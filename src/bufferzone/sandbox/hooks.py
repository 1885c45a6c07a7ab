"""Runs OCI hooks on the host: state on stdin, in the caller's namespaces, with their time limit.

Source: runtime-spec config.md "POSIX-platform Hooks". Safe to call from any thread (posix_spawn, no fork).
"""

from __future__ import annotations

import os
import select
import signal

from bufferzone.errors import HostError
from bufferzone.model import Hook

_STDERR_LIMIT = 4096


def run_hooks(name: str, hooks: tuple[Hook, ...], state: bytes) -> None:
    """Run `hooks` in order; raises `HostError` naming the first that fails, cannot start or runs out of
    time.
    """
    for index, hook in enumerate(hooks):
        _run(f"{name} hook {index} ({hook.path})", hook, state)


def _run(label: str, hook: Hook, state: bytes) -> None:
    with open(os.memfd_create("state", os.MFD_CLOEXEC), "w+b", buffering=0) as stdin:
        stdin.write(state)
        stdin.seek(0)
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            pid = _start(label, hook, stdin.fileno(), write_end)
        finally:
            os.close(write_end)
    try:
        status = _wait(pid, hook.timeout_s)
        os.set_blocking(read_end, False)
        try:
            said = os.read(read_end, _STDERR_LIMIT).decode("utf-8", "replace").strip()
        except BlockingIOError:
            said = ""
    finally:
        os.close(read_end)
    if status is None:
        raise HostError(f"{label} ran longer than {hook.timeout_s} s", code="hook-timeout")
    if status != 0:
        raise HostError(f"{label} failed with status {status}: {said}", code="hook-failed")


def _start(label: str, hook: Hook, stdin: int, stderr: int) -> int:
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    environment = dict(entry.split("=", 1) for entry in hook.env if "=" in entry)
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


def _wait(pid: int, timeout_s: int | None) -> int | None:
    """The exit status as a shell shows it, or None after the hook's process group was killed for its time."""
    pidfd = os.pidfd_open(pid)
    try:
        ready = select.select([pidfd], [], [], timeout_s)[0]
        if not ready:
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    if not ready:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
