"""The keeper's process: small, one per state root, there while `pool.size` says so and starts come.

Started by the first `create` that finds none, or by `bz pool start`. It outlives the container whose start
began it, and those that wait do not outlive it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys

from bufferzone import config, programs, state
from bufferzone.client import handshake
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux import process
from bufferzone.linux.ignoring import ignoring
from bufferzone.pool.keeper import Keeper
from bufferzone.shim.logs import log
from bufferzone.vm import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.config import Settings
    from bufferzone.shim.arguments import Arguments

_LOCK = "lock"
_CONTROL_FD = 3
_MOST_LOG = 64 << 10


def _spawn(root: str) -> Callable[[Settings, str], tuple[int, socket.socket]]:
    """Starts workers for the state root `root`."""

    def spawn(settings: Settings, directory: str) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        shape = json.dumps(config.shape_of(settings))
        flags = ["-root", root, "-bundle", directory, "-shape", shape, "-ready-fd", str(_CONTROL_FD)]
        log = os.path.join(directory, "shim.log")
        command = programs.argv("pool", *flags, "wait")
        with theirs:
            pid = os.posix_spawn(
                command[0],
                command,
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD),
                ],
                setsid=True,
            )
        return pid, ours

    return spawn


def keep(arguments: Arguments) -> int:
    """The keeper's process for -root; returns the exit status. -shape is what it begins with: `settings` and
    `spec` as JSON. A second one for the same root ends at once. -ready-fd, if given, learns in a line how it
    began. Raises `HostError`.
    """
    ready = handshake.Ready(int(arguments.ready_fd or -1))
    try:
        return _keep(arguments, ready)
    except OSError as error:
        where = error.filename or arguments.root
        line = f"the pool cannot be kept: {error.strerror}: {where}"
        _tell(ready, line)
        raise HostError(line, code="pool-keeper") from error
    except BufferzoneError as error:
        _tell(ready, error.line())
        raise


def _tell(ready: handshake.Ready, line: str) -> None:
    with ignoring(errno.EPIPE, errno.ECONNRESET):  # nobody waits any more
        ready.say(f"{line}\n".encode(errors="replace"))


def _keep(arguments: Arguments, ready: handshake.Ready) -> int:
    os.chdir("/")
    os.umask(0o077)
    process.set_name("bufferzone-pool")
    try:
        cgroups.join("", os.getpid())  # it outlives the container whose start began it
    except HostError as error:
        log(error.line())
    directory = os.path.join(arguments.root, state.POOL)
    os.makedirs(directory, 0o700, exist_ok=True)
    lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _tell(ready, "ready")  # it is kept already
        return 0
    if os.fstat(2).st_size > _MOST_LOG:
        os.ftruncate(2, 0)
    _remove_old(directory)
    keeper = Keeper(directory, config.load, _spawn(arguments.root), log)
    try:
        _tell(ready, "ready")
        keeper.add_stock(**json.loads(arguments.shape))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        keeper.run()
    finally:
        keeper.close()
    return 0


def _remove_old(directory: str) -> None:
    """What a keeper that was killed has left: its workers died with it."""
    for entry in os.scandir(directory):
        if entry.name.isdigit():
            try:
                state.remove(entry.path)
            except HostError as error:
                log(error.line())  # it is in the way of nothing
