"""Hooks that run in the guest: startContainer. Runs in the child, one after the other, each as the
container's own program will: its user, capabilities and seccomp filter.

Source: runtime-spec config.md "POSIX-platform Hooks": the state as JSON on stdin, a failure or a timeout
fails the operation. Error texts as runc's: `error running startContainer hook #0: exit status 1, output:
...`.
"""

from __future__ import annotations

import os
import select

from bufferzone.container import signals
from bufferzone.errors import BufferzoneError, GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_TAIL = 1024
#: the environment of a hook that names none
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run_all(kind: str, hooks: list[dict[str, Any]], state: str, become: Callable[[], None]) -> None:
    """Run every hook of one kind with `state` on its stdin; raises `GuestError` `hook-failed` at the
    first failure. `become` takes on the container's identity, in the hook's process.
    """
    for number, hook in enumerate(hooks):
        output = os.memfd_create("hook", os.MFD_CLOEXEC)
        try:
            problem = _run(hook, state.encode(), output, become)
            if problem:
                said = os.pread(output, _TAIL, max(0, os.fstat(output).st_size - _TAIL))
                text = said.decode("utf-8", "replace").strip().replace("\n", "\\n")
                message = f"error running {kind} hook #{number}: {problem}, output: {text}"
                raise GuestError(message, code="hook-failed")
        finally:
            os.close(output)


def _run(hook: dict[str, Any], state: bytes, output: int, become: Callable[[], None]) -> str:
    """Run one hook; return what went wrong, or nothing."""
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(stdin, state)
    os.lseek(stdin, 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        _exec(hook, stdin, output, become)
    os.close(stdin)
    handle = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    timeout_s = hook.get("timeout")
    try:
        if not poll.poll(None if timeout_s is None else int(timeout_s) * 1000):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return f"hook ran past specified timeout of {timeout_s}s"
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(handle)
    if status < 0:
        return f"signal: {-status}"
    return f"exit status {status}" if status else ""


def _exec(hook: dict[str, Any], stdin: int, output: int, become: Callable[[], None]) -> None:
    """Become the hook; never returns."""
    path = str(hook.get("path") or "")
    try:
        signals.restore()
        os.setsid()
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        given = hook.get("env")
        wanted = [str(item) for item in ([_PATH] if given is None else given)]
        named = (item for item in wanted if item.find("=") > 0)
        environment = dict(item.split("=", 1) for item in named)
        become()
        os.execve(path, [str(a) for a in hook.get("args") or [path]], environment)
    except OSError as error:
        os.write(2, f"fork/exec {path}: {(error.strerror or '').lower()}".encode("utf-8", "surrogateescape"))
    except BufferzoneError as error:
        os.write(2, error.line().encode("utf-8", "surrogateescape"))
    finally:
        os._exit(127)
