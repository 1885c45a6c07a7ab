"""The pool's keeper, for who looks after it: what waits, a pool ahead of the first start, and its end.

What takes a VM is `client.pool_claim`. Prints nothing, and knows no command line.
"""

from __future__ import annotations

import fcntl
import os

from bufferzone import config, jsontext, state
from bufferzone.client import start
from bufferzone.client.connection import connect_unix
from bufferzone.client.handshake import read_line
from bufferzone.errors import HostError, NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket  # see client/connection.py

_ANSWER_S = 30.0


def listing(root: str) -> dict[str, Any]:
    """What waits below the state root: `vms`, each with pid, state, vcpus, memory_mib and age_s, and `notes`,
    lines about what went wrong.

    Raises `NotFoundError` where there is no keeper, `HostError` for one that does not answer as it should.
    """
    try:
        found: dict[str, Any] = jsontext.loads(_ask(root, "list").decode())
    except ValueError as error:
        raise HostError("the pool's keeper sent a malformed answer", code="pool-keeper") from error
    return found


def begin(root: str) -> None:
    """Start a keeper with the shape that the settings say, and wait until it is one; nothing where there is
    one. Raises `HostError` where the settings or the user have no pool, and with what the keeper says.
    """
    settings = config.load()
    if os.geteuid() != 0:
        raise HostError(
            "only root, or root of a user namespace, can use a pool",
            hint="run as root, or podman unshare bz pool start",
        )
    if not start.wants_pool(settings):
        raise HostError(
            "the pool is disabled",
            hint=f"pool.size = 2 in {config.DIRECTORY}/config.toml",
            code="no-pool",
        )
    shape = jsontext.dumps({"settings": config.shape_of(settings), "spec": {}})
    reader, writer = os.pipe()
    try:
        try:
            start.start_keeper(root, shape, "", writer)
        finally:
            os.close(writer)
        line = read_line(reader).decode("utf-8", "replace").strip()
    finally:
        os.close(reader)
    if line != "ready":
        raise HostError(
            line or f"the pool's keeper died: see {root}/{state.POOL}/keeper.log", code="pool-keeper"
        )


def end(root: str) -> None:
    """Have the keeper end with the VMs that wait; where it was killed, take away what it left."""
    try:
        _ask(root, "stop")
    except NotFoundError:
        _clear(os.path.join(root, state.POOL))


def _ask(root: str, what: str) -> bytes:
    """The keeper's answer, up to the end of the connection; raises `NotFoundError` when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_ANSWER_S)
        _connect(sock, root)
        sock.sendall(jsontext.dumps({"do": what}).encode() + b"\n")
        answer = b""
        while data := sock.recv(1 << 16):
            answer += data
        return answer
    except OSError as error:
        reason = error.strerror or "timed out"
        raise HostError(f"the pool's keeper does not answer: {reason}", code="pool-keeper") from error
    finally:
        sock.close()


def _connect(sock: socket.socket, root: str) -> None:
    try:
        connect_unix(sock, os.path.join(root, state.POOL, state.POOL_SOCKET))
    except PermissionError as error:
        raise HostError(f"the pool below {root} is another user's", code="pool-keeper") from error
    except OSError as error:
        hint = "bz pool start, or the next container, where pool.size is set"
        raise NotFoundError(f"no pool is kept below {root}", hint=hint, code="no-pool") from error


def _clear(directory: str) -> None:
    """What a keeper that was killed has left: its VMs died with it."""
    try:
        lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise HostError(f"cannot clear {directory}: {error.strerror}", code="pool-keeper") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(directory):
            if name.isdigit():
                state.remove(os.path.join(directory, name))
            elif name == state.POOL_SOCKET:
                os.unlink(os.path.join(directory, name))
    except BlockingIOError:
        pass  # one is just beginning
    except OSError as error:
        raise HostError(f"cannot clear {directory}: {error.strerror}", code="pool-keeper") from error
    finally:
        os.close(lock)
