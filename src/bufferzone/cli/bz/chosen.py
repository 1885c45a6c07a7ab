"""Which container a person means: its id, its name, or the beginning of an id that only one has."""

from __future__ import annotations

from bufferzone import state
from bufferzone.client import container
from bufferzone.errors import NotFoundError, UsageError
from bufferzone.log import shown


def directory(root: str, name: str) -> str:
    """The state directory of that container. Raises `NotFoundError` or `UsageError`."""
    try:
        return container.find(root, name)
    except NotFoundError:
        ids = [id for id in state.list_ids(state.runtime_root(root)) if id.startswith(name)]
        if len(ids) > 1:
            raise UsageError(f"more than one container has an id that begins with {shown(name)}") from None
        if not ids:
            raise
        return container.find(root, ids[0])
