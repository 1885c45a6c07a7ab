"""How a waiter comes to be: a child of a program of ours that is about to end, or a program of its own.

Either way it is an orphan in the end, which whoever waits for the pid reaps: conmon, containerd's shim, init.
Which of the two, and what each costs: docs/decisions/waiter-by-fork-or-exec.md
"""

from __future__ import annotations

import os

from bufferzone import programs
from bufferzone.client import handshake, signals, waiter
from bufferzone.errors import BugError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Any

    from bufferzone.client.job import Job
else:
    import _socket as socket  # see client/connection.py

#: where the program finds its end of the conversation
TALK_FD = 3
_ABOVE = 10  # copies of stdio lie here, out of the way of what they become


def detach(job: Job, stdio: Sequence[int], *, forked: bool) -> int:
    """Start the waiter of `job` and return its pid once the process is made; raises what went wrong.

    `stdio` are the three descriptors that the process in the VM gets. `forked`: the caller is a program of
    ours with one thread and little memory, and ends soon, so the waiter is a fork of it and costs a
    millisecond.
    """
    return _by_fork(job, stdio) if forked else _by_exec(job, stdio)


def abandon(pid: int) -> None:
    """Kill a waiter, and with it the process it stands for; reap it where it is our child."""
    try:
        os.kill(pid, signals.KILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _by_fork(job: Job, stdio: Sequence[int]) -> int:
    reader, writer = os.pipe()
    pid = fork(job)
    if pid == 0:
        os.close(reader)
        os._exit(waiter.stand(job, stdio, writer))
    os.close(writer)
    word = handshake.read_line(reader)
    os.close(reader)
    if word == b"ok":
        return pid
    os.waitpid(pid, 0)
    raise _failure(word)


def fork(job: Job) -> int:
    """os.fork(); the waiter of a container, if it may, in a PID namespace of its own. Raises `HostError`."""
    if job.face is None:
        return os.fork()
    from bufferzone.client import waiter_root

    return waiter_root.fork_in_own_pid_namespace()


def _by_exec(job: Job, stdio: Sequence[int]) -> int:
    """Start our program, tell it the job, hear the waiter's pid, which is not our child, and how it began."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            between = _spawn(stdio, theirs.fileno())
        finally:
            theirs.close()
        try:
            ours.sendall(job.to_json())
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has died, which is what it says next
        lines = _lines(ours)
        os.waitpid(between, 0)
    finally:
        ours.close()
    pids = [int(line) for line in lines if line.isdigit()]
    words = [line for line in lines if not line.isdigit()]  # which of the two is faster is not known
    if pids and words == [b"ok"]:
        return pids[0]
    raise _failure(words[0] if words else b"")


def _lines(sock: socket.socket) -> list[bytes]:
    """All it says: its pid and one line more; less, when it dies."""
    found = b""
    try:
        while data := sock.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass  # before it had read its job
    return found.split(b"\n")[:-1]


def _failure(word: bytes) -> Exception:
    return handshake.error_from(word) if word else BugError("the waiter died")


def _spawn(stdio: Sequence[int], talk: int) -> int:
    """Start the program with these four descriptors, deaf to nothing, in no environment of the caller's."""
    import fcntl

    copies: list[int] = []
    try:
        for fd in (*stdio, talk):
            copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE))
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies)]
        command = programs.argv("client")
        return os.posix_spawn(
            command[0],
            command,
            programs.ENVIRONMENT,
            file_actions=actions,
            setsigmask=(),
            setsigdef=range(1, 32),
        )
    except OSError as error:
        raise HostError(f"cannot start the waiter: {error.strerror}", code="waiter-start") from error
    finally:
        for fd in copies:
            os.close(fd)
