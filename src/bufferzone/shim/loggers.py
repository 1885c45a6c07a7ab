"""Log programs: `binary:///path?key=value` as containerd names one that takes a process's output.

It is the caller's program and runs with the caller's rights. 3 and 4 are its ends of stdout and stderr; it
closes 5 once it reads. Source: containerd runtime v2 README, "Logging"; containerd pkg/process io.go.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress

from bufferzone.errors import HostError
from bufferzone.linux import pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEME = "binary://"
_READY_S = 10.0
_END_S = 10.0
_DEFAULTS = [signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


class Logger:
    """One that runs. `stdout` and `stderr` are our ends, which whoever takes them closes."""

    def __init__(self, pid: int, stdout: int, stderr: int) -> None:
        self._pid = pid
        self.stdout, self.stderr = stdout, stderr

    def finish(self) -> None:
        """Both ends are closed: let it read what is left, in a thread of its own, and reap it."""
        threading.Thread(target=self._reap, name="logger", daemon=True).start()

    def kill(self) -> None:
        """It did not become ready: end it, and close our ends."""
        os.close(self.stdout)
        os.close(self.stderr)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _reap(self) -> None:
        fd = os.pidfd_open(self._pid)  # our child: the pid is its own until it is reaped
        try:
            if not pidfd.await_end(fd, _END_S):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGTERM)
                pidfd.end(fd, _END_S)
            os.waitpid(self._pid, 0)
        finally:
            os.close(fd)


def start(uri: str, id: str, namespace: str) -> Logger:
    """Start the program of `uri` for a process and wait until it reads. Raises `HostError`."""
    import urllib.parse

    found = urllib.parse.urlsplit(uri)
    words = [urllib.parse.unquote(found.path)]
    for key, values in urllib.parse.parse_qs(found.query, keep_blank_values=True).items():
        words += [key, values[0]]
    out, err, ready = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    environment = {"CONTAINER_ID": id, "CONTAINER_NAMESPACE": namespace}
    try:
        pid = _spawn(words, environment, (out[0], err[0], ready[1]))
        logger = Logger(pid, out[1], err[1])
    except OSError as error:
        os.close(out[1])
        os.close(err[1])
        os.close(ready[0])
        raise HostError(f"cannot start the log program {words[0]}: {error.strerror}", code="stdio") from error
    finally:
        for fd in (out[0], err[0], ready[1]):
            os.close(fd)
    try:
        _await_ready(ready[0], words[0])
    except HostError:
        logger.kill()
        raise
    finally:
        os.close(ready[0])
    return logger


def _spawn(words: list[str], environment: dict[str, str], fds: tuple[int, int, int]) -> int:
    """Ours may lie where its own are to be, so that they are moved out of the way first."""
    import fcntl

    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in fds]
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        *((os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies, 3)),
    ]
    try:
        return os.posix_spawn(
            words[0],
            words,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULTS,
        )
    finally:
        for fd in copies:
            os.close(fd)


def _await_ready(fd: int, name: str) -> None:
    """A byte or the end of file; it is not told apart from one that died, whose output then goes nowhere."""
    if not select.select([fd], [], [], _READY_S)[0]:
        raise HostError(f"the log program {name} was not ready within {_READY_S:g} s", code="stdio")
    os.read(fd, 1)
