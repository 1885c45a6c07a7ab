"""Passes on what a guest asks of the resolver at 127.0.0.11 in its container's network namespace.

Docker's own server is there, behind a translation of ports for what is sent from within the namespace. So the
one who listens at 127.0.0.11:53 for the guest, and asks in its stead, is this. Nothing of what passes is
read; only those are heard who are at the other end of the wire (`linklocal`), and so many at a time. What is
not answered in time is forgotten, as a resolver expects of UDP.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time

from bufferzone import log
from bufferzone.linux import process
from bufferzone.network import linklocal
from bufferzone.wire.network import RESOLVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SERVER = (socket.inet_ntoa(RESOLVER), 53)
_MOST_QUERIES, _MOST_CONNECTIONS = 256, 16
_QUERY_S, _CONNECTION_S = 12.0, 30.0
_DATAGRAM = 65535


class Relay:
    """Serves from its making on, in a thread that is in the namespace `fd`, until `close`. Raises OSError."""

    def __init__(self, fd: int) -> None:
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._begun = threading.Event()
        self._errors: list[OSError] = []
        self._queries: dict[socket.socket, tuple[Any, float]] = {}
        self._connections = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._thread = threading.Thread(target=self._run, args=(fd,), name="resolver", daemon=True)
        self._thread.start()
        self._begun.wait()
        if self._errors:
            self._thread.join()
            os.close(self._stop)
            raise self._errors[0]

    def close(self) -> None:
        """Let the port go; connections end by themselves."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def _run(self, fd: int) -> None:
        try:
            process.setns(fd, process.CLONE_NEWNET)
            with _socket(socket.SOCK_DGRAM) as datagrams, _socket(socket.SOCK_STREAM) as streams:
                datagrams.bind(_SERVER)
                streams.bind(_SERVER)
                streams.listen(_MOST_CONNECTIONS)
                self._begun.set()
                self._serve(datagrams, streams)
        except OSError as error:
            if self._begun.is_set():
                log.say(f"names of the container's network are not resolved any more: {error.strerror}")
            else:
                self._errors.append(error)
        finally:
            self._begun.set()

    def _serve(self, datagrams: socket.socket, streams: socket.socket) -> None:
        with selectors.EpollSelector() as selector:
            for opened in (self._stop, datagrams, streams):
                selector.register(opened, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(self._patience())]
                if self._stop in ready:
                    break
                for source in ready:
                    if source is datagrams:
                        self._ask(datagrams, selector)
                    elif source is streams:
                        self._connect(streams)
                    elif isinstance(source, socket.socket):
                        self._answer(datagrams, source, selector)
                self._forget_old(selector)
            for asking in self._queries:
                asking.close()

    def _patience(self) -> float | None:
        """Until the oldest query is forgotten."""
        oldest = next(iter(self._queries.values()), None)
        return None if oldest is None else max(0.0, oldest[1] - time.monotonic())

    def _ask(self, datagrams: socket.socket, selector: selectors.BaseSelector) -> None:
        """Each query from a port of its own: so the server tells them apart, and answers find back."""
        try:
            query, sender = datagrams.recvfrom(_DATAGRAM)
            if not _is_guest(sender):
                return
            asking = _socket(socket.SOCK_DGRAM)
        except OSError:
            return  # an ICMP error of an answer that nobody wanted
        try:
            asking.connect(_SERVER)
            asking.send(query)
        except OSError:
            asking.close()
            return
        if len(self._queries) == _MOST_QUERIES:
            self._drop(next(iter(self._queries)), selector)
        self._queries[asking] = sender, time.monotonic() + _QUERY_S
        selector.register(asking, selectors.EVENT_READ)

    def _answer(
        self, datagrams: socket.socket, asking: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        if asking not in self._queries:
            return  # dropped in this very round
        sender, _ = self._queries[asking]
        try:
            datagrams.sendto(asking.recv(_DATAGRAM), sender)
        except OSError:
            pass  # nobody answers: nor do we
        self._drop(asking, selector)

    def _forget_old(self, selector: selectors.BaseSelector) -> None:
        now = time.monotonic()
        for asking in [asking for asking, (_, end) in self._queries.items() if end <= now]:
            self._drop(asking, selector)

    def _drop(self, asking: socket.socket, selector: selectors.BaseSelector) -> None:
        del self._queries[asking]
        selector.unregister(asking)
        asking.close()

    def _connect(self, streams: socket.socket) -> None:
        try:
            client, sender = streams.accept()
        except OSError:
            return  # it left at once
        if not _is_guest(sender) or not self._connections.acquire(blocking=False):
            client.close()
            return
        try:
            server = _socket(socket.SOCK_STREAM)
            server.settimeout(_CONNECTION_S)
            server.connect(_SERVER)  # on this machine: it is there at once, or it is not
        except OSError:
            client.close()
            self._connections.release()
            return
        work = threading.Thread(target=self._carry, args=(client, server), name="resolver tcp", daemon=True)
        work.start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Both ways, until one of them ends, or says nothing for long."""
        process.hold_only()
        try:
            with client, server, selectors.EpollSelector() as selector:
                client.settimeout(_CONNECTION_S)
                selector.register(client, selectors.EVENT_READ, server)
                selector.register(server, selectors.EVENT_READ, client)
                while ready := selector.select(_CONNECTION_S):
                    for key, _ in ready:
                        source: Any = key.fileobj
                        data = source.recv(_DATAGRAM)
                        if not data:
                            return
                        key.data.sendall(data)
        except OSError:
            pass  # one of them is gone, so is the other
        finally:
            self._connections.release()


def _socket(kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
    if kind == socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _is_guest(sender: Any) -> bool:
    return linklocal.is_one(socket.inet_aton(sender[0]))
