"""A start by containerd that takes a VM from the pool: what it asks for, and what becomes of the shim.

The claim is the verbs', with a few words more; see `client.pool_claim`. A shim that is taken differs from one
that `start` forks in nothing that containerd sees: the same socket, the same log, the same end.
"""

from __future__ import annotations

import errno
import os

from bufferzone import config, jsontext, log, oci, state
from bufferzone.client import pool_claim, start
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux.ignoring import ignoring
from bufferzone.oci.host import check_network, settings_of
from bufferzone.shim import cleanup, logs
from bufferzone.shim.engine_options import EngineOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from bufferzone.config import Settings
    from bufferzone.oci import Spec
    from bufferzone.shim.arguments import Arguments


class PoolStart:
    """One start by containerd, below whose -id nothing lives. Raises what is wrong with the bundle."""

    def __init__(self, arguments: Arguments, bundle: str) -> None:
        self._arguments = arguments
        self._spec: Spec = oci.load(bundle, containerd=True)
        self._settings: Settings = settings_of(self._spec)
        self._keeper_wanted = False

    def take(self, path: str, listener: socket.socket) -> bool:
        """Make a VM that waits the one that serves at `listener`, bound to `path`; False: there is none, and
        nothing is left.
        """
        if not start.wants_pool(self._settings):
            return False
        check_network(self._spec.raw, self._settings)
        directory = os.path.join(self._arguments.state_root, state.check_id(self._arguments.id))
        state.remove(directory)
        state.create(self._arguments.state_root, self._arguments.id)
        containerd = {
            "namespace": self._arguments.namespace,
            "socket": path,
            "publish": os.environ.get("TTRPC_ADDRESS", ""),
            "settings": list(config.read_beside().items()),
        }
        try:
            if pool_claim.claim(directory, self._spec, self._settings, containerd, listener.fileno()):
                return True
        except pool_claim.NoKeeper:
            self._keeper_wanted = True
        state.remove(directory)
        return False

    def begin_pool(self) -> None:
        """After a start without one: begin a pool where the settings want it and there is none."""
        if not self._keeper_wanted:
            return
        shape = jsontext.dumps(pool_claim.shape(self._spec, self._settings))
        with log.passing_over("begin a pool", HostError):  # the next start tries again
            start.start_keeper(self._arguments.state_root, shape, "")


def take_settings(requested: dict[str, Any]) -> None:
    """Have this process read the settings that the engine has for its runtime."""
    for where, text in requested["settings"]:
        EngineOptions(str(where), str(text or "")).apply()


def become_containerds(arguments: Arguments, requested: dict[str, Any], listener: socket.socket) -> None:
    """Become the shim that `take` asked for, with its log. Raises OSError."""
    arguments.namespace = str(requested["namespace"])
    os.environ["TTRPC_ADDRESS"] = str(requested["publish"])
    logs.log_to_containerd(arguments.bundle)
    listener.listen(64)  # again: callers are told who did last (SO_PEERCRED)


def leave(path: str, directory: str) -> None:
    """At the end of such a shim: nobody else removes its socket and its state."""
    with ignoring(errno.ENOENT):
        os.unlink(path)
    try:
        cleanup.remove_own(directory)
    except BufferzoneError as error:
        logs.log(error.line())
