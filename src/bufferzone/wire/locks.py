"""Locks of files on a volume: what the guest asks the host for. Part of the agent's service, method `Locks`.

The call blocks until the guest has something to ask; what was asked is answered with the next call. All of
it is hostile input to the host: numbers, and a name below the shared tree that is looked up there and nowhere
else.
"""

from __future__ import annotations

from bufferzone.wire.proto import Message, blob, boolean, messages, sint, string, uint

#: what a lock is made with: flock(2), or fcntl(2); they do not know of each other
FLOCK, RANGE = 0, 1
#: 0 none, 1 shared, 2 exclusive
NONE, SHARED, EXCLUSIVE = 0, 1, 2


class LockStep(Message):
    """One step on file number `file`, which the guest gives out: the VM's own lock of a kind becomes `mode`
    between `start` and `end` (2**63 - 1: to the end), or is only tried (`test`). Never waits.

    The first step on a file has its `volume` (a name in the share), its `path` below and its `inode`.
    `forget`: the file and all its locks.
    """

    file: int = uint(1)
    volume: str = string(2)
    path: bytes = blob(3)
    inode: int = uint(4)
    kind: int = uint(5)
    mode: int = uint(6)
    start: int = sint(7)
    end: int = sint(8)
    test: bool = boolean(9)
    forget: bool = boolean(10)


class LockResult(Message):
    """The end of a step: errno or 0. Of a test: the mode (0: nothing in the way) and range of what is."""

    error: int = uint(1)
    mode: int = uint(2)
    start: int = sint(3)
    end: int = sint(4)


class LocksRequest(Message):
    """Answers to the steps of the last response, in order. `first`: there was none on this connection."""

    results: list[LockResult] = messages(1, LockResult)
    first: bool = boolean(2)


class LocksResponse(Message):
    """What to do next, in order."""

    steps: list[LockStep] = messages(1, LockStep)
