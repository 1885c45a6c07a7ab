"""A connection to a systemd manager: its private socket, or a message bus on which it is.

Blocking, one call at a time, no thread. The private socket saves the bus daemon's part of each round trip,
and exists where no bus runs. Source: D-Bus Specification, "Authentication Protocol"; systemd's
org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import os
import time

from bufferzone.errors import HostError
from bufferzone.linux import identity
from bufferzone.systemd import dbus

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Any, Self
else:
    import _socket as socket  # socket.py alone imports enum and selectors

_SYSTEM = (("/run/systemd/private", True), ("/run/dbus/system_bus_socket", False))
_TIMEOUT_S = 30.0
_MANAGER = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_INTERFACE = "org.freedesktop.systemd1.Manager"


class CallError(HostError):
    """A call that was answered with an error; `name` is D-Bus' name for it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"systemd: {text or name}", code="systemd")
        self.name = name.rpartition(".")[2]


def sockets() -> list[tuple[str, bool]]:
    """Where our manager may be reached: (path, whether it is its private socket). An ordinary user's is the
    user's own.
    """
    if identity.is_real_root():
        return list(_SYSTEM)
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{identity.outer_uid()}"
    found = [(f"{runtime}/systemd/private", True)]
    for address in os.environ.get("DBUS_SESSION_BUS_ADDRESS", "").split(";"):
        transport, _, rest = address.partition(":")
        path = dict(pair.partition("=")[::2] for pair in rest.split(",")).get("path", "")
        if transport == "unix" and path.startswith("/"):
            found.append((path, False))
    return [*found, (f"{runtime}/bus", False)]


class Bus:
    """A connection; a context manager that owns its socket. Raises `HostError` `systemd`, and `CallError`."""

    def __init__(self, sock: socket.socket, *, private: bool) -> None:
        self._sock, self._private = sock, private
        self._serial = 0
        self._received = b""
        self._signals: list[dbus.Message] = []
        self._authenticate()
        if not private:
            self._call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
            rule = f"type='signal',sender='{_MANAGER}',interface='{_INTERFACE}'"
            self._call(
                "org.freedesktop.DBus",
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "AddMatch",
                "s",
                [rule],
            )
            self.call("Subscribe")

    @classmethod
    def connect(cls, addresses: Sequence[tuple[str, bool]] = ()) -> Self:
        """The first of these, or of ours, that answers."""
        refused = []
        for path, private in addresses or sockets():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            sock.settimeout(_TIMEOUT_S)
            try:
                sock.connect(path)
                return cls(sock, private=private)
            except OSError as error:
                sock.close()
                refused.append(f"{path}: {(error.strerror or 'no answer').lower()}")
            except BaseException:
                sock.close()
                raise
        hint = ""
        if not identity.is_real_root():
            hint = "an ordinary user's manager runs in a login session, or with: loginctl enable-linger"
        raise HostError(f"cannot reach systemd: {', '.join(refused)}", hint=hint, code="systemd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def call(self, member: str, signature: str = "", values: Sequence[Any] = ()) -> Sequence[Any]:
        """Call a method of the manager; the values it returns."""
        return self._call(_MANAGER, _PATH, _INTERFACE, member, signature, values)

    def await_signal(self, member: str, first: Any, timeout_s: float, *, at: int = 0) -> Sequence[Any]:
        """The values of a signal of the manager's whose value number `at` is `first`; those that came since
        this connection was made count. Raises `HostError` when there is none in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            for message in self._signals:
                if message.fields.get(dbus.MEMBER) == member and message.body[at : at + 1] == [first]:
                    self._signals.remove(message)
                    return message.body
            left = end - time.monotonic()
            if left <= 0:
                raise HostError(f"systemd: no {member} for {first} in {timeout_s:g} s", code="systemd")
            self._sock.settimeout(left)
            try:
                message = self._read()
            except TimeoutError:
                continue
            finally:
                self._sock.settimeout(_TIMEOUT_S)
            if message.kind == dbus.SIGNAL:
                self._signals.append(message)

    def _authenticate(self) -> None:
        """As who we are to the kernel: without a uid in it, since in a user namespace ours means another."""
        self._sock.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")
        while not self._received.startswith(b"OK "):
            line, end, rest = self._received.partition(b"\r\n")
            if not end:
                self._more()
            elif line == b"DATA":
                self._received = rest
            else:
                raise PermissionError(13, f"it says {line[:80].decode('ascii', 'replace')}")
        while b"\r\n" not in self._received:
            self._more()
        self._received = self._received.partition(b"\r\n")[2]

    def _call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: Sequence[Any] = (),
    ) -> Sequence[Any]:
        self._serial += 1
        fields: dict[int, Any] = {dbus.PATH: path, dbus.INTERFACE: interface, dbus.MEMBER: member}
        if not self._private:
            fields[dbus.DESTINATION] = destination
        if signature:
            fields[dbus.SIGNATURE] = signature
        try:
            self._sock.sendall(dbus.Message(dbus.CALL, self._serial, fields, values).encode())
            return self._answer()
        except OSError as error:
            why = (error.strerror or f"no answer in {_TIMEOUT_S:g} s").lower()
            raise HostError(f"systemd: {member}: {why}", code="systemd") from error

    def _answer(self) -> Sequence[Any]:
        while True:
            message = self._read()
            if message.kind == dbus.SIGNAL:
                self._signals.append(message)
            elif message.fields.get(dbus.REPLY_SERIAL) != self._serial:
                continue
            elif message.kind == dbus.ERROR:
                text = str(message.body[0]) if message.body else ""
                raise CallError(str(message.fields.get(dbus.ERROR_NAME, "")), text)
            elif message.kind == dbus.RETURN:
                return message.body

    def _read(self) -> dbus.Message:
        while len(self._received) < dbus.FIXED:
            self._more()
        size = dbus.size_of(self._received)
        while len(self._received) < size:
            self._more()
        data, self._received = self._received[:size], self._received[size:]
        return dbus.decode(data)

    def _more(self) -> None:
        data = self._sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError(104, "it closed the connection")
        self._received += data
