"""containerd's `start`: prints where the shim of a bundle listens, which begins now or is there already.

containerd waits for it before each container, so nothing is imported here that a VM needs, nor is one waited
for: what is wrong is told to whoever asks for the pod or the container.
"""

from __future__ import annotations

import errno
import os
import sys

from bufferzone.client import handshake
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux.ignoring import ignoring
from bufferzone.shim import address
from bufferzone.shim.bootstrap import Caller
from bufferzone.shim.logs import log, log_to_containerd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from bufferzone.shim.arguments import Arguments

#: for the caller of a start that failed to ask for its container
_ASK_S = 120.0


def start(arguments: Arguments) -> int:
    """Begin a shim unless one listens, and print its address. Raises what is wrong."""
    stdin = sys.stdin.buffer.read()
    caller = Caller(stdin, arguments)
    os.umask(0o077)
    arguments.bundle = arguments.bundle or os.getcwd()
    path = address.socket_path(arguments, arguments.bundle)
    address.record(arguments.bundle, path)
    if not address.answers(path):
        _begin(arguments, path, stdin)
    sys.stdout.buffer.write(caller.answer(path))  # every byte is taken for the answer
    sys.stdout.flush()
    return 0


def _begin(arguments: Arguments, path: str, stdin: bytes) -> None:
    try:
        listener = address.bound(path)
    except OSError as error:
        raise _not_listening(path, error) from error
    if os.fork() == 0:
        life = _pods_life if address.is_pods(arguments.bundle) else _containers_life
        left = _leave_caller(arguments, listener)
        if stdin:
            from bufferzone.shim import engine_options

            engine_options.told_to_start(stdin).apply()
        os._exit(life(arguments, path, left))
    os.close(listener)


def _leave_caller(arguments: Arguments, listener: int) -> socket.socket:
    """Be a daemon that listens by the descriptor `listener`."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    log_to_containerd(arguments.bundle)
    import socket  # nobody waits for us any more

    return socket.socket(fileno=listener)


def _pods_life(arguments: Arguments, path: str, listener: socket.socket) -> int:
    from bufferzone.shim import daemon

    return daemon.run(arguments, path, listener, handshake.Ready(-1))


def _containers_life(arguments: Arguments, path: str, listener: socket.socket) -> int:
    """Until a shim serves at `listener`, or the caller knows why none does."""
    try:
        _serve(arguments, path, listener)
    except BufferzoneError as error:
        fault = error
    except OSError as error:
        fault = HostError(f"cannot start the shim: {error.strerror or error}", code="shim-start")
    else:
        return 0
    _refuse(arguments, path, listener, fault)
    return 1


def _refuse(arguments: Arguments, path: str, listener: socket.socket, fault: BufferzoneError) -> None:
    from bufferzone.shim import door as doors

    log(fault.line())
    door = doors.of_container(listener, arguments.id)
    if door.await_create(_ASK_S) is not None:
        door.refuse(fault)
    with ignoring(errno.ENOENT):
        os.unlink(path)


def _serve(arguments: Arguments, path: str, listener: socket.socket) -> None:
    from bufferzone.shim.pool_start import PoolStart  # brings the settings

    pool = PoolStart(arguments, arguments.bundle)
    if pool.take(path, listener):
        return
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        from bufferzone.shim import daemon

        os._exit(daemon.run(arguments, path, listener, handshake.Ready(write_end)))
    os.close(write_end)
    line = handshake.read_line(read_end)
    os.close(read_end)
    if handshake.others_in(line, b"ready") is None:
        raise handshake.error_from(line) if line else _silent_death()
    pool.begin_pool()


def _not_listening(path: str, error: OSError) -> HostError:
    return HostError(f"cannot listen at {path}: {error.strerror or error}", code="socket")


def _silent_death() -> HostError:
    return HostError("the shim died before it listened", hint="see containerd's log", code="shim-died")
