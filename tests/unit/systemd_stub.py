"""A manager that is none: a socket that answers as systemd does, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import socket
import threading

from bufferzone.systemd import dbus

JOB = "/org/freedesktop/systemd1/job/7"


class Manager:
    """Serves a socket until it is closed. `refusals`: member -> D-Bus errors, one for each call, in order;
    `result` is what its jobs end with.
    """

    def __init__(self, path: str) -> None:
        self.calls: list[tuple[str, list]] = []
        self.refusals: dict[str, list[str]] = {}
        self.result = "done"
        self.before_answer: list[dbus.Message] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def asked(self, member: str) -> list:
        return [values for name, values in self.calls if name == member]

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(ConnectionError, EOFError):
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        wanted = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"
        assert _exactly(sock, len(wanted)) == wanted
        sock.sendall(b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\n")
        while True:
            head = _exactly(sock, dbus.FIXED)
            call = dbus.decode(head + _exactly(sock, dbus.size_of(head) - dbus.FIXED))
            for answer in self._answers(call):
                sock.sendall(answer.encode())

    def _answers(self, call: dbus.Message) -> list[dbus.Message]:
        member = call.fields[dbus.MEMBER]
        self.calls.append((member, list(call.body)))
        reply = {dbus.REPLY_SERIAL: call.serial}
        if refusals := self.refusals.get(member):
            error = {dbus.ERROR_NAME: f"org.freedesktop.systemd1.{refusals.pop(0)}", dbus.SIGNATURE: "s"}
            return [dbus.Message(dbus.ERROR, 1, {**reply, **error}, [f"{member} is refused"])]
        if member not in ("StartTransientUnit", "StopUnit"):
            return [*self.before_answer, dbus.Message(dbus.RETURN, 1, reply)]
        ended = signal("JobRemoved", "uoss", [7, JOB, call.body[0], self.result])
        begun = dbus.Message(dbus.RETURN, 1, {**reply, dbus.SIGNATURE: "o"}, [JOB])
        return [ended, begun] if member == "StopUnit" else [begun, ended]  # both orders are seen


def signal(member: str, signature: str, values: list) -> dbus.Message:
    fields = {dbus.PATH: "/", dbus.INTERFACE: "i.i", dbus.MEMBER: member, dbus.SIGNATURE: signature}
    return dbus.Message(dbus.SIGNAL, 1, fields, values)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
