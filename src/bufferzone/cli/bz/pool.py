"""`bz pool`: the VMs that wait for containers. They come and go by themselves; this is for looking, for a
pool ahead of the first start, and for its end.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys

from bufferzone import config, state
from bufferzone.cli import output
from bufferzone.client import start
from bufferzone.client.connection import connect_unix
from bufferzone.errors import HostError, NotFoundError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = "ls | start | stop"
DESCRIPTION = (
    "With pool.size = N in the settings, N VMs per shape wait, frozen, for the next containers. ls shows "
    "them, start begins with the settings' shape ahead of the first container, stop ends those that wait: "
    "running containers are not touched."
)
WORDS = (1, 1)
INTERSPERSED = True

_ANSWER_S = 30.0


def run(options: Options, words: list[str]) -> int:
    """Do what the word says."""
    actions = {"ls": _list, "start": _start, "stop": _stop}
    if words[0] not in actions:
        raise UsageError(f"no such action: {words[0]!a}", hint="ls, start or stop")
    actions[words[0]](state.runtime_root(options.root))
    return 0


def _ask(root: str, what: str) -> bytes:
    """The keeper's answer, up to the end of the connection; raises `NotFoundError` when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_S)
        try:
            connect_unix(sock, os.path.join(root, state.POOL, state.POOL_SOCKET))
        except PermissionError as error:
            raise HostError(f"the pool below {root} is another user's", code="pool-keeper") from error
        except OSError as error:
            hint = "bz pool start, or the next container, where pool.size is set"
            raise NotFoundError(f"no pool is kept below {root}", hint=hint, code="no-pool") from error
        try:
            sock.sendall(json.dumps({"do": what}).encode() + b"\n")
            answer = b""
            while data := sock.recv(1 << 16):
                answer += data
            return answer
        except OSError as error:
            reason = error.strerror or "timed out"
            raise HostError(f"the pool's keeper does not answer: {reason}", code="pool-keeper") from error


def _list(root: str) -> None:
    rows = [["PID", "STATE", "VCPUS", "MEMORY", "AGE"]]
    found: dict[str, Any] = {"vms": [], "notes": []}
    try:
        found = json.loads(_ask(root, "list"))
    except NotFoundError as error:
        found["notes"] = [error.line()]
    except ValueError as error:
        raise HostError("the pool's keeper sent a malformed answer", code="pool-keeper") from error
    for vm in found["vms"]:
        size = f"{vm['memory_mib']} MiB"
        rows.append([str(vm["pid"]), vm["state"], str(vm["vcpus"]), size, f"{vm['age_s']:.0f} s"])
    output.print_table(rows)
    for note in found["notes"]:
        print(f"bz: {note}", file=sys.stderr)


def _start(root: str) -> None:
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
    shape = {"settings": config.shape_of(settings), "spec": {}}
    reader, writer = os.pipe()
    with open(reader, "rb") as answer:
        try:
            start.start_keeper(root, json.dumps(shape), "", writer)
        finally:
            os.close(writer)
        line = answer.readline().decode("utf-8", "replace").strip()
    if line != "ready":
        raise HostError(
            line or f"the pool's keeper died: see {root}/{state.POOL}/keeper.log", code="pool-keeper"
        )


def _stop(root: str) -> None:
    try:
        _ask(root, "stop")
    except NotFoundError:
        _clear(os.path.join(root, state.POOL))


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
