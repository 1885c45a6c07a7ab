"""`delete`: free what a container holds, end its shim, remove its state. With --force from any state."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import container, launch, signals
from bufferzone.cli.flags import Flag
from bufferzone.client import Client
from bufferzone.errors import BufferzoneError, NotFoundError
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("force f", "", "kill it first if it runs; an unknown id is no failure"),)
USAGE = "[options] <container-id>"
DESCRIPTION = ""
WORDS = (1, 1)
INTERSPERSED = True

_KILL_S = 15.0


def run(options: Options, words: list[str]) -> int:
    """Delete it, whatever is left of it."""
    try:
        directory = container.find(options, words[0])
    except NotFoundError:
        if options.force:
            return 0
        raise
    remove(directory, words[0], force=options.force, program=options.shim)
    return 0


def remove(directory: str, id: str, *, force: bool, program: str) -> None:
    """End and remove a container; raises `StateError` when it is not stopped and `force` is not given."""
    bundle, status = _facts(directory)
    if status not in (state.STOPPED, state.CREATED) and not force:
        raise container.refusal("delete", id, status)
    if not state.owner_alive(directory) or not _delete_in_shim(directory, id, force=force):
        launch.kill_owner(directory)
        launch.clean_up(directory, bundle, program)
        state.remove(directory)
        return
    launch.shut_down(directory)
    state.remove(directory)


def _facts(directory: str) -> tuple[str, str]:
    """Bundle and status; a directory that was half made or half removed counts as stopped."""
    try:
        found = state.read_state(directory)
    except (NotFoundError, ValueError):
        return "/", state.STOPPED
    return str(found.get("bundle", "/")), str(found["status"])


def _delete_in_shim(directory: str, id: str, *, force: bool) -> bool:
    """Kill if need be, then Delete. False when there is no answer and `force` says to go on without."""
    try:
        with Client.connect(directory) as client:
            if force:
                _kill_and_wait(client, id)
            client.call("Delete", task.DeleteRequest(id=id), timeout_s=None if not force else 2 * _KILL_S)
    except NotFoundError:
        return True  # the shim never made it, or it is deleted already: what is left is the shim itself
    except BufferzoneError:
        if not force:
            raise
        return False
    return True


def _kill_and_wait(client: Client, id: str) -> None:
    try:
        client.call("Kill", task.KillRequest(id=id, signal=signals.KILL, all=True), timeout_s=_KILL_S)
    except BufferzoneError as error:
        if error.code != "not-running":
            raise
    client.call("Wait", task.WaitRequest(id=id), timeout_s=_KILL_S)
