"""The verbs' side of the pool: take a VM that waits, or do without. Never the reason that a start fails.

Imported only where `pool.size` is set. Imports nothing slow.
"""

from __future__ import annotations

import os
import select
import time

from bufferzone import config, state
from bufferzone.client.connection import connect_unix, rights
from bufferzone.jsontext import quote
from bufferzone.oci import cri

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.oci import Spec
else:
    import _socket as socket

#: until the VM runs again and is found to fit; on a busy machine a start without the pool is no slower
_CLAIM_S = 2.0
#: from then on there are a few files to write
_TAKE_S = 10.0
_KINDS = ("cgroup", "ipc", "net", "pid", "time", "user", "uts")


class NoKeeper(Exception):
    """Nobody listens: a keeper may be started."""


def claim(
    directory: str,
    spec: Spec,
    settings: Settings,
    more: dict[str, Any] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Make a waiting VM the one of the container in `directory`; the shim's pid, or 0 when there is none.

    Then the directory is as before. `more` goes with the request. `meanwhile` is called once the VM is ours
    and not yet served. Raises `NoKeeper`.
    """
    sock = _connect(os.path.dirname(directory))
    pidfd = -1
    try:
        if os.readlink("/proc/self/root") != "/":
            return 0  # paths in a mount namespace alone would not say what they mean to us
        _send(sock, directory, spec, settings, more or {})
        word, _, number = _line(sock, _CLAIM_S).partition(b" ")
        if word != b"ready" or not number.isdigit():
            return 0
        pidfd = os.pidfd_open(int(number))
        if _is_taken(sock, meanwhile):
            return int(number)
        _undo(directory, pidfd)
    except OSError:
        pass  # too late, or it has just ended
    finally:
        sock.close()
        if pidfd >= 0:
            os.close(pidfd)
    return 0


def _is_taken(sock: socket.socket, meanwhile: Callable[[], None]) -> bool:
    try:
        sock.sendall(b"go\n")
        meanwhile()
        return _line(sock, _TAKE_S) == b"listening"
    except OSError:
        return False  # it ended in the middle


def _connect(root: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CLAIM_S)
        connect_unix(sock, os.path.join(root, state.POOL, "keeper.sock"))
    except OSError as error:
        sock.close()
        raise NoKeeper from error
    return sock


def _send(sock: socket.socket, directory: str, spec: Spec, settings: Settings, more: dict[str, Any]) -> None:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        oom_score_adj = int(file.read())
    request = {
        "do": "claim",
        "id": os.path.basename(directory),
        "bundle": spec.bundle,
        "oom_score_adj": oom_score_adj,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "namespaces": " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in _KINDS),
        **shape(spec, settings),
        **more,
    }
    here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = to_json(request).encode("utf-8", "surrogateescape") + b"\n"
        sent = sock.sendmsg([data], [rights([here])])
        sock.sendall(data[sent:])
    finally:
        os.close(here)


def shape(spec: Spec, settings: Settings) -> dict[str, Any]:
    """What decides which VMs fit: the settings, and of config.json what the VM's size depends on."""
    resources = spec.linux.get("resources") or {}
    limits = {
        name: {key: value for key, value in (resources.get(name) or {}).items() if key in keys}
        for name, keys in (("memory", ("limit",)), ("cpu", ("quota", "period", "cpus")))
    }
    notes = {key: value for key, value in spec.pod.items() if key.startswith(cri.SIZES)}
    sizes = {"linux": {"resources": limits}, "annotations": notes}
    return {"settings": config.shape_of(settings), "spec": sizes}


def to_json(value: Any) -> str:
    """JSON of a value of dicts, lists, strings, numbers and booleans; json costs a verb too much."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(key)}:{to_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_json, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else quote(value)


def _line(sock: socket.socket, timeout_s: float) -> bytes:
    """One line without its end; empty when the connection ended or time is up."""
    end = time.monotonic() + timeout_s
    found = b""
    while not found.endswith(b"\n") and len(found) < 64:
        sock.settimeout(max(0.001, end - time.monotonic()))
        data = sock.recv(64)
        if not data:
            return b""
        found += data
    return found[:-1]


def _undo(directory: str, pidfd: int) -> None:
    """The shim failed in the middle: wait for its end, and take away what would be in the way of another."""
    if not _await_end(pidfd):
        _kill(pidfd)
        _await_end(pidfd)
    left = state.read_leftovers(directory)
    for pid, start in left.get("processes", []):
        _await_helper(int(pid), int(start))
    for path in left.get("cgroups", []):
        try:
            os.rmdir(path)  # who makes it anew limits it
        except OSError:
            pass  # it was there before, and is in use
    try:
        os.unlink(os.path.join(directory, state.SOCKET))
    except FileNotFoundError:
        pass  # it did not come so far
    state.write_owner(directory, os.getpid())


def _await_end(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(_TAKE_S * 1000))


def _kill(pidfd: int) -> None:
    import signal

    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just ended


def _await_helper(pid: int, start: int) -> None:
    """It dies with its shim; one that does not is `leftovers`' business when the container is deleted."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if state.process_alive(pid, start):
            _await_end(pidfd)
    finally:
        os.close(pidfd)
