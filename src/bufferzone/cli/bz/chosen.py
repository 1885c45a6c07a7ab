"""Which container a person means: its id, its name, or the beginning of an id that only one has."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli.bz import roots
from bufferzone.client import container
from bufferzone.errors import UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from bufferzone.library.sandbox import Sandbox
    from bufferzone.wire.proto import Message


def directory(root: str, name: str) -> str:
    """The state directory of that container, whoever started it. Raises `NotFoundError` or `UsageError`."""
    begins = []
    for place in roots.roots(root):
        for id in state.list_ids(place):
            if id == name:
                return os.path.join(place, id)
            if id.startswith(name):
                begins.append(os.path.join(place, id))
    if len(begins) > 1:
        raise UsageError(f"more than one container has an id that begins with {shown(name)}")
    if not begins:
        raise state.no_container(state.check_id(name))
    return begins[0]


def answers(
    root: str, names: Sequence[str], method: str, request: Callable[..., Message], doing: str
) -> Iterator[tuple[str, Any]]:
    """Ask the shim of each container; its name, and the answer. `doing` is what a refusal says."""
    for name in names:
        place = directory(root, name)
        yield name, container.ask(place, method, request(id=os.path.basename(place)), doing)


def sandbox(root: str, name: str) -> Sandbox:
    """The same as the library has it; raises `StateError` too, for one that has ended."""
    from bufferzone.library.sandbox import Sandbox

    place, id = os.path.split(directory(root, name))
    return Sandbox.attach(id, root=place)
