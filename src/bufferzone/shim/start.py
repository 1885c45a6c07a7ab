"""containerd's `start`: prints where the shim of a bundle listens, which begins now or is there already.

containerd waits for it before each container of a pod, so nothing is imported here that only a new VM needs.
"""

from __future__ import annotations

import os
import sys

from bufferzone.client import handshake
from bufferzone.errors import HostError
from bufferzone.shim import address
from bufferzone.shim.bootstrap import Caller
from bufferzone.shim.logs import log, log_to_containerd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.shim.arguments import Arguments


def start(arguments: Arguments) -> int:
    """Begin a shim unless one listens, and print its address. Raises what is wrong."""
    caller = Caller(sys.stdin.buffer.read(), arguments)
    os.umask(0o077)
    arguments.bundle = arguments.bundle or os.getcwd()
    path = address.socket_path(arguments, arguments.bundle)
    address.record(arguments.bundle, path)
    if not address.answers(path):
        begin = _begin_pod if address.is_pods(arguments.bundle) else _begin_container
        begin(arguments, path)
    sys.stdout.buffer.write(caller.answer(path))  # every byte is taken for the answer
    sys.stdout.flush()
    return 0


def _begin_pod(arguments: Arguments, path: str) -> None:
    """What is wrong with the pod is told to whoever asks for it: the caller need not wait for our imports."""
    try:
        listener = address.bound(path)
    except OSError as error:
        raise _not_listening(path, error) from error
    if os.fork() == 0:
        os._exit(_daemon(arguments, path, listener, handshake.Ready(-1), of_pod=True))
    os.close(listener)


def _begin_container(arguments: Arguments, path: str) -> None:
    from bufferzone.shim.pool_start import PoolStart  # brings the settings

    pool = PoolStart(arguments, arguments.bundle)
    if pool.take(path):
        return
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        os._exit(_daemon(arguments, path, -1, handshake.Ready(write_end), of_pod=False))
    os.close(write_end)
    line = handshake.read_line(read_end)
    os.close(read_end)
    if handshake.others_in(line, b"ready") is None:
        raise handshake.error_from(line) if line else _silent_death()
    pool.begin_pool()


def _daemon(arguments: Arguments, path: str, listener: int, ready: handshake.Ready, *, of_pod: bool) -> int:
    """The rest of a shim's life; `listener` is a descriptor, -1: it does not listen yet."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    log_to_containerd(arguments.bundle)
    from bufferzone.shim import daemon

    try:
        listener = address.bound(path) if listener < 0 else listener
    except OSError as error:
        fault = _not_listening(path, error)
        log(fault.line())
        ready.say(handshake.error_line(fault))
        return 1
    return daemon.run(arguments, path, listener, ready, of_pod=of_pod)


def _not_listening(path: str, error: OSError) -> HostError:
    return HostError(f"cannot listen at {path}: {error.strerror or error}", code="socket")


def _silent_death() -> HostError:
    return HostError("the shim died before it listened", hint="see containerd's log", code="shim-died")
