"""Connections to one shim, kept between calls: each is one thread's at a time.

After a fork the child has none of its parent's: what both used would be neither's, and the shim takes a
connection that stays open for a caller that lives.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager

from bufferzone import state
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError, NotFoundError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from bufferzone.wire.proto import Message

#: a thread of the shim stands behind each
_MOST_IDLE = 16
_all: weakref.WeakSet[Connections] = weakref.WeakSet()


class Connections:
    """Those to the shim of the sandbox whose state is in `directory`. `held` is the one that it lives as long
    as, if it is ours. `kind`, sandbox or container, is what an error calls it. Thread-safe.
    """

    def __init__(self, directory: str, held: Client | None = None, *, kind: str = "sandbox") -> None:
        self._directory, self._held, self._kind = directory, held, kind
        self._idle: list[Client] = []
        self._lock = threading.Lock()
        #: what lived as long as we held it has gone, whoever has its name by now
        self._closed = self.given_up = False
        _all.add(self)

    @property
    def holds(self) -> bool:
        """Whether the sandbox ends with us."""
        return self._held is not None

    @contextmanager
    def borrow(self) -> Iterator[Client]:
        """One for the caller alone, given back unless an exception comes: then it is closed, and with it ends
        what it was asked for. Raises `StateError` with the code `sandbox-ended` or `container-ended`.
        """
        client = self.take()
        try:
            yield client
        except BufferzoneError as error:
            client.close()
            raise self.explained(error) from error
        except BaseException:
            client.close()
            raise
        self._give_back(client)

    def take(self) -> Client:
        """One that is the caller's from now on. Raises as `borrow`."""
        if self.given_up:
            raise self._ended("it was removed")
        with self._lock:
            client = self._idle.pop() if self._idle else None
        return client or self._connect()

    def call(self, method: str, request: Message, **options: Any) -> Any:
        """One call. A refusal of the shim's leaves the connection as it is."""
        refusal: BufferzoneError | None = None
        with self.borrow() as client:
            try:
                return client.call(method, request, **options)
            except BufferzoneError as error:
                if error.code in ("shim-ended", "shim-timeout", "cgroup-frozen"):
                    raise
                refusal = error
        raise self.explained(refusal)

    def close(self) -> None:
        """Close them all, the held one too: the sandbox ends then."""
        with self._lock:
            clients, self._idle, self._closed = self._idle, [], True
            self.given_up = self.given_up or self.holds
        for client in [*clients, *([self._held] if self._held else [])]:
            client.close()
        self._held = None

    def _connect(self) -> Client:
        try:
            return Client.connect(self._directory)
        except BufferzoneError as error:
            raise self.explained(error) from error

    def _give_back(self, client: Client) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(client)
                return
        client.close()

    def explained(self, error: BufferzoneError) -> BufferzoneError:
        """Where the sandbox is gone, that; else the error."""
        lost = error.code in ("shim-gone", "shim-ended")
        if not lost and not isinstance(error, (StateError, NotFoundError)):
            return error
        hint = "" if os.path.exists(self._directory) else "it was removed"
        if not hint and _status(self._directory) != state.STOPPED:
            return error
        return self._ended(hint or _last_words(self._directory))

    def _ended(self, hint: str) -> StateError:
        name = os.path.basename(self._directory)
        return StateError(f"the {self._kind} has ended: {name}", hint=hint, code=f"{self._kind}-ended")

    def _forget(self) -> None:
        """We are the child of a fork."""
        self._lock = threading.Lock()
        for client in [*self._idle, *([self._held] if self._held else [])]:
            client.close()
        self._idle, self._held = [], None


def _status(directory: str) -> str:
    try:
        return state.status(directory)
    except (BufferzoneError, ValueError):
        return state.STOPPED  # it is being removed


def _last_words(directory: str) -> str:
    """Why, if its shim said so."""
    from bufferzone.client.start import last_log_line

    return last_log_line(directory)


def _after_fork() -> None:
    for connections in list(_all):
        connections._forget()


os.register_at_fork(after_in_child=_after_fork)
