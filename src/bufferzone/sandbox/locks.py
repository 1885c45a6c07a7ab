"""Serves the guest's wishes for file locks, one batch after another, as long as there is an agent."""

from __future__ import annotations

from bufferzone.errors import BufferzoneError
from bufferzone.storage.locks import Keeper
from bufferzone.wire.locks import LocksRequest, LocksResponse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.storage.share import Tree
    from bufferzone.vm.agent_client import AgentClient


def serve(client: AgentClient, tree: Tree) -> None:
    """Until the connection ends; then every lock is given back."""
    keeper = Keeper(tree)
    request = LocksRequest(first=True)
    try:
        while True:
            wanted = client.call("Locks", request, LocksResponse)
            request = LocksRequest(results=[keeper.take(step) for step in wanted.steps])
    except BufferzoneError:
        pass  # the sandbox has its own way to tell
    finally:
        keeper.close()
