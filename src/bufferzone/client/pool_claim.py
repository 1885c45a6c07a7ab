"""The verbs' side of the pool: take a VM that waits, or do without. Never the reason that a start fails.

Imported only where `pool.size` is set. Imports nothing slow.
"""

from __future__ import annotations

import os
import time

from bufferzone import config, jsontext, programs, state
from bufferzone.client.connection import connect_unix, rights
from bufferzone.client.handshake import others_in
from bufferzone.linux import namespaces, pidfd
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


class NoKeeper(Exception):
    """Nobody listens: a keeper may be started."""


def claim(
    directory: str,
    spec: Spec,
    settings: Settings,
    containerd: dict[str, Any] | None = None,
    listener: int = -1,
    meanwhile: Callable[[], None] = lambda: None,
    found: Callable[[int], None] = lambda others: None,
) -> int:
    """Make a waiting VM the one of the container in `directory`; the shim's pid, or 0 when there is none.

    Then the directory is as before. `containerd` is what a shim of containerd's has to know, and `listener`
    the descriptor of its socket. `meanwhile` is called once the VM is ours and not yet served, `found` as in
    `start_shim`. Raises `NoKeeper`.
    """
    sock = _connect(os.path.dirname(directory))
    shim = -1
    try:
        if os.readlink("/proc/self/root") != "/":
            return 0  # paths in a mount namespace alone would not say what they mean to us
        _send(sock, directory, spec, settings, containerd, listener)
        word, _, number = _line(sock, _CLAIM_S).partition(b" ")
        if word != b"ready" or not number.isdigit():
            return 0
        shim = os.pidfd_open(int(number))
        others = _taken(sock, meanwhile)
        if others is not None:
            found(others)
            return int(number)
        _undo(directory, shim)
    except OSError:
        pass  # too late, or it has just ended
    finally:
        sock.close()
        if shim >= 0:
            os.close(shim)
    return 0


def _taken(sock: socket.socket, meanwhile: Callable[[], None]) -> int | None:
    """How many processes of others are in its cgroup; None: it was not taken."""
    try:
        sock.sendall(b"go\n")
        meanwhile()
        return others_in(_line(sock, _TAKE_S), b"listening")
    except OSError:
        return None  # it ended in the middle


def _connect(root: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_CLAIM_S)
        connect_unix(sock, os.path.join(root, state.POOL, state.POOL_SOCKET))
    except OSError as error:
        sock.close()
        raise NoKeeper from error
    return sock


def _send(
    sock: socket.socket,
    directory: str,
    spec: Spec,
    settings: Settings,
    containerd: dict[str, Any] | None,
    listener: int,
) -> None:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        oom_score_adj = int(file.read())
    request = {
        "do": "claim",
        "id": os.path.basename(directory),
        "bundle": spec.bundle,
        "oom_score_adj": oom_score_adj,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "namespaces": namespaces.shared(),
        "code": programs.PLACE,
        **shape(spec, settings),
        "containerd": containerd,
    }
    here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = jsontext.dumps(request).encode() + b"\n"
        sent = sock.sendmsg([data], [rights([here] if listener < 0 else [here, listener])])
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
    notes = {key: value for key, value in spec.pod.items() if key in cri.POD_LIMITS}
    sizes = {"linux": {"resources": limits}, "annotations": notes}
    return {"settings": config.shape_of(settings), "spec": sizes}


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


def _undo(directory: str, shim: int) -> None:
    """The shim failed in the middle: wait for its end, and take away what would be in the way of another."""
    pidfd.end(shim, _TAKE_S, _TAKE_S)
    left = state.read_leftovers(directory)
    for pid, start in left.get("processes", []):
        _await_helper(int(pid), int(start))
    for unit in left.get("scopes", []):
        from bufferzone.systemd import scope

        scope.stop(unit)
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


def _await_helper(pid: int, start: int) -> None:
    """It dies with its shim; one that does not is `leftovers`' business when the container is deleted."""
    try:
        helper = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if state.process_alive(pid, start):
            pidfd.await_end(helper, _TAKE_S)
    finally:
        os.close(helper)
