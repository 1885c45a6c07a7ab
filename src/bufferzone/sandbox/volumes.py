"""Puts what a container has of the host into the tree that its VM shares; logs what a guest sees otherwise.

Decides nothing about a mount: `sandbox/mounts.py` has.
"""

from __future__ import annotations

from bufferzone.errors import HostError
from bufferzone.oci import hostmounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from typing import Any

    from bufferzone.model import Bind
    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.storage.share import Tree

#: places below a volume in one line of the log
_MOST_NAMED = 16


def give(
    sandbox: Sandbox,
    container_id: str,
    binds: Sequence[Bind],
    see: Callable[[Callable[[], Any]], Any],
    undo: ExitStack,
    *,
    ours: int = 0,
) -> None:
    """Share every one of `binds`, whose sources are looked for with `see`, but the first `ours` of them,
    which are mounts of our own; `undo` takes them back. Raises `HostError`.
    """
    share = sandbox.tree
    if sandbox.recorder.on:
        shown = [f"{bind.source} {'ro' if bind.read_only else 'rw'}" for bind in binds]
        sandbox.recorder.note("volumes", container_id, sources=shown)
    for index, bind in enumerate(binds):
        if share is None:
            raise HostError(f"nothing is shared with this VM: {bind.source}", code="no-share")
        unshared = _add(share, bind, see if index >= ours else _here)
        undo.callback(share.remove, bind.name)
        if unshared:
            words = f"below {bind.source} the guest's own is in place of the host's, or nothing"
            sandbox.log(f"{container_id}: {words}: {', '.join(unshared[:_MOST_NAMED])}")
        if share.has_acl(bind.name):
            words = f"{bind.source} has a POSIX ACL, which is not obeyed in the VM: mode bits decide"
            sandbox.log(f"{container_id}: {words}")


def _here(work: Callable[[], Any]) -> Any:
    return work()


def _add(share: Tree, bind: Bind, see: Callable[[Callable[[], Any]], Any]) -> list[str]:
    """`Tree.add`, whose error says which of config.json's mounts it was."""
    try:
        return share.add(bind, see)
    except HostError as error:
        index = bind.name.rpartition(".")[2]
        if not index.isdigit():
            raise
        hint = error.hint or (hostmounts.HINT if bind.type else "")
        raise HostError(
            f"config.json: mounts[{index}]: {error.message}", hint=hint, code=error.code
        ) from error
