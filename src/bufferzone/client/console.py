"""Terminals on the host: the pty that --console-socket asks for, and a person's own terminal made raw."""

from __future__ import annotations

import os

from bufferzone.client.connection import connect_unix, rights
from bufferzone.errors import HostError
from bufferzone.linux import terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any
else:
    import _socket as socket  # see client/connection.py


def open_pty(console_socket: str, size: tuple[int, int]) -> int:
    """Make a raw pty, send its master over the console socket and return the slave as controlling terminal.

    `size` is (width, height); zeros leave it alone. Raises `HostError`.
    """
    import tty

    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        terminal.make_controlling(slave)  # so that SIGWINCH of whoever resizes the master comes to us
        if all(size):
            terminal.resize(slave, *size)
        with_name = os.ttyname(slave).encode()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connect_unix(sock, console_socket)
            sock.sendmsg([with_name], [rights([master])])
        finally:
            sock.close()
    except OSError as error:
        os.close(slave)
        raise HostError(
            f"console socket {console_socket}: {error.strerror}", code="console-socket"
        ) from error
    finally:
        os.close(master)
    return slave


def window_size(fd: int) -> tuple[int, int]:
    """(width, height) in characters; zeros when it is not a terminal or nobody said."""
    import termios

    try:
        height, width = termios.tcgetwinsize(fd)
    except (OSError, termios.error):
        return 0, 0
    return width, height


class RawTerminal:
    """A context in which the terminal at `fd`, if it is one, is raw; what it was before is restored on every
    way out.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] = []

    def __enter__(self) -> RawTerminal:
        if os.isatty(self._fd):
            import termios
            import tty

            self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
