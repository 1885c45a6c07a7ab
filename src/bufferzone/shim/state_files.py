"""Writes what the other programs read: state.json of every container, at each transition."""

from __future__ import annotations

import os
import pwd
import time

from bufferzone import state
from bufferzone.errors import HostError
from bufferzone.shim.logs import log
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.sandbox.container import Container
    from bufferzone.shim.process import Process


class StateFiles:
    """State files below `root`; `facts()` are the sandbox's annotations (accelerator, guest kernel,
    failure). `socket_path`: where the shim listens, if it is not in the container's directory; other programs
    find it there then as well.
    """

    def __init__(self, root: str, facts: Callable[[], dict[str, str]], socket_path: str = "") -> None:
        self._root, self._socket_path = root, socket_path
        self._facts = facts
        self._owner = _user_name(os.getuid())

    def write(self, container: Container, status: str) -> None:
        """Replace the container's state.json."""
        directory = os.path.join(self._root, container.id)
        if not os.path.isdir(directory):
            state.create(self._root, container.id)
        if self._socket_path:
            self._show_socket(directory)
        state.write_state(
            directory,
            id=container.id,
            status=status,
            pid=container.pid,
            bundle=container.bundle,
            rootfs=container.rootfs,
            created=rfc3339(container.created_ns),
            owner=self._owner,
            annotations={**(container.spec.get("annotations") or {}), **self._facts(), **_sandbox(container)},
        )

    def _show_socket(self, directory: str) -> None:
        """As in a directory of the CLI's, which is why it has an owner too."""
        try:
            os.link(self._socket_path, state.socket_path(directory), follow_symlinks=False)
        except FileExistsError:
            return
        except OSError as error:
            log(f"bz does not reach the container: {error.strerror}")  # containerd does
        state.write_owner(directory, os.getpid())

    def changed(self, process: Process, container: Container) -> None:
        """The init's status is another one now."""
        self.write(container, task.STATUS_NAMES[process.status])

    def ended(self, process: Process, container: Container) -> None:
        """As `changed`; a full disk is logged: `state` then tells its end when the shim has ended."""
        try:
            self.changed(process, container)
        except HostError as error:
            log(error.line())

    def text(self, container: Container, status: str) -> bytes:
        """The OCI state as a hook gets it on stdin: with the bundle's annotations, ours are for `state`."""
        import json

        value = {
            "ociVersion": state.OCI_VERSION,
            "id": container.id,
            "status": status,
            "pid": 0 if status == state.STOPPED else container.pid,
            "bundle": container.bundle,
            "annotations": container.spec.get("annotations") or {},
        }
        return json.dumps(value, separators=(",", ":")).encode()  # as runc's, which scripts cut up


def _sandbox(container: Container) -> dict[str, str]:
    """In whose VM it is, where that is not its own."""
    return {"bufferzone.sandbox": container.joined} if container.joined else {}


def rfc3339(ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC, nine digits of fraction."""
    whole, fraction = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:09d}Z"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
