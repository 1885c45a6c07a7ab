"""Ends containers and their shims: orderly where there is an answer, by force where there is none."""

from __future__ import annotations

import os
import select
import time

from bufferzone import log, state
from bufferzone.client import container, signals, start
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, HostError, NotFoundError
from bufferzone.linux import pidfd
from bufferzone.wire import task

_KILL_S = 15.0
_DELETE_S = 60.0  # poststop hooks run in it
_END_S = 20.0
#: nobody listens, or whoever did has hung up
_LEAVING = ("shim-gone", "shim-ended")
_TURN_S = 0.01  # how often to ask whether the other removal is done


def remove(directory: str, id: str, *, force: bool, program: str) -> None:
    """End and remove a container; raises `StateError` when it is not stopped and `force` is not given.

    One at a time: who comes second finds nothing, `NotFoundError`, and without a word with `force`.
    """
    turn = _take_turn(directory)
    try:
        if turn >= 0:
            _remove(directory, id, force=force, program=program)
        elif not force:
            raise state.no_container(id)
    finally:
        if turn >= 0:
            os.close(turn)


def _take_turn(directory: str) -> int:
    """Lock the state directory against other removals; -1 when it was removed, maybe made anew, meanwhile.

    One that hangs is not waited for longer than the whole of a removal may take.
    """
    import fcntl

    end = time.monotonic() + _KILL_S + _DELETE_S + _END_S
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        raise HostError(f"cannot open {directory}: {error.strerror}", code="state-unreadable") from error
    while time.monotonic() < end:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            select.select([], [], [], _TURN_S)
    try:
        if os.path.samestat(os.fstat(fd), os.stat(directory)):
            return fd
    except FileNotFoundError:
        pass  # removed
    os.close(fd)
    return -1


def _remove(directory: str, id: str, *, force: bool, program: str) -> None:
    status = _status(directory)
    if status not in (state.STOPPED, state.CREATED) and not force:
        raise container.refusal("delete", id, status)
    if not state.owner_alive(directory) or not _delete_in_shim(directory, id, force=force):
        _kill_owner(directory)
        if os.path.exists(os.path.join(directory, state.LEFTOVERS)):
            start.clean_up(directory, _bundle(directory), program)
    elif _shut_down(directory):
        _remove_cgroups(directory)
    state.remove(directory)


def _remove_cgroups(directory: str) -> None:
    """Those that the shim could not leave while it lived; on cgroup v2 inside a container, say. A scope ends
    with the shim: a container of the same name can be made at once only when it is gone.
    """
    try:
        left = state.read_leftovers(directory)
    except ValueError:
        return  # half written: it was on the way up
    for unit in left.get("scopes", []):
        from bufferzone.systemd import scope

        if problem := scope.stop(unit):
            log.debug(f"passed over: stop {unit}: {problem}")
    for path in left.get("cgroups", []):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            pass  # as is usual
        except OSError as error:
            log.debug(f"passed over: remove {path}: {error.strerror}")


def _status(directory: str) -> str:
    """The status; a directory that was half made or half removed counts as stopped."""
    try:
        return state.status(directory)
    except (NotFoundError, ValueError):
        return state.STOPPED


def _bundle(directory: str) -> str:
    try:
        return str(state.read_state(directory)["bundle"])
    except (NotFoundError, ValueError, KeyError):
        return "/"


def _delete_in_shim(directory: str, id: str, *, force: bool) -> bool:
    """Kill if need be, then Delete. False when there is no answer and `force` says to go on without."""
    try:
        with Client.connect(directory) as client:
            if force:
                _kill_and_wait(client, id)
            client.call("Delete", task.DeleteRequest(id=id), timeout_s=_DELETE_S)
    except NotFoundError:
        return True  # the shim never made it, or it is deleted already: what is left is the shim itself
    except BufferzoneError as error:
        if error.code in _LEAVING and _await_leaving(directory):
            return False
        if not force and state.owner_alive(directory):
            raise
        if error.code == "cgroup-frozen" and _thaw(directory):
            return _delete_in_shim(directory, id, force=True)
        return False
    return True


def _await_leaving(directory: str) -> bool:
    """Whether a shim that serves nobody any more has ended: one whose container has stopped leaves by itself
    where its caller waits for that, and may be on its way.
    """
    try:
        if state.status(directory) != state.STOPPED:
            return False
    except (NotFoundError, ValueError):
        return False  # on its way up
    pid = state.owner_pid(directory)
    if not pid:
        return True
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return pidfd.await_end(fd, _END_S)
    finally:
        os.close(fd)


def _thaw(directory: str) -> bool:
    """Let the container's cgroups run on, as runc does: on v1 what is frozen takes no signal. False: one
    above them is frozen.
    """
    from bufferzone.linux import freezer  # hardly ever

    places = state.read_leftovers(directory).get("cgroups", [])
    frozen = [place for place in places if freezer.is_frozen(place)]
    for place in frozen:
        freezer.thaw(place)
    return bool(frozen) and not any(freezer.is_frozen(place) for place in frozen)


def _kill_and_wait(client: Client, id: str) -> None:
    try:
        client.call("Kill", task.KillRequest(id=id, signal=signals.KILL, all=True), timeout_s=_KILL_S)
    except BufferzoneError as error:
        if error.code != "not-running":
            raise
    client.call("Wait", task.WaitRequest(id=id), timeout_s=_KILL_S)


def _shut_down(directory: str) -> bool:
    """Ask the shim to end and wait until it has: True. False: others live in its VM. One that hangs is
    killed; a dead one is fine.
    """
    pid = state.owner_pid(directory)
    try:
        with Client.connect(directory) as client:
            client.call("Shutdown", task.ShutdownRequest(id=os.path.basename(directory)), timeout_s=_END_S)
    except BufferzoneError as error:
        if error.code == "vm-shared":
            return False
        # else it ended already, or it is killed below
    if pid and pid != os.getpid():
        _end_process(pid)
    return True


def _kill_owner(directory: str) -> None:
    """End a shim that does not answer, and with it whatever else is in its VM."""
    pid = state.owner_pid(directory)
    if pid and pid != os.getpid():
        _end_process(pid, 0)


def _end_process(pid: int, timeout_s: float = _END_S) -> bool:
    """Wait for a process to end, reap it if it is our child; after `timeout_s` it is killed: then False."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        _reap(pid)
        return True
    try:
        ended = pidfd.end(fd, timeout_s, _END_S)
    finally:
        os.close(fd)
    _reap(pid)
    return ended


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # somebody else's child


def discard(directory: str, program: str, reason: BaseException) -> None:
    """Undo a creation that failed for `reason`: nothing is left. If that fails too, its hint says so."""
    try:
        if os.path.isdir(directory):
            remove(directory, os.path.basename(directory), force=True, program=program)
    except BufferzoneError as error:
        if isinstance(reason, BufferzoneError):
            reason.hint = f"{reason.hint}; then {error.message}".removeprefix("; ")
