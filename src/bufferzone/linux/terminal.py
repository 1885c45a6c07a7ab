"""Terminals and pipes: the ioctls of ioctl_tty(2) that the standard library does not wrap."""

from __future__ import annotations

import fcntl
import struct

_TIOCSCTTY, _TIOCSWINSZ = 0x540E, 0x5414
_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTPEER = 0x80045430, 0x40045431, 0x5441
_FIONREAD = 0x541B


def unlock(master: int) -> None:
    """TIOCSPTLCK: allow the slave to be opened."""
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))


def number(master: int) -> int:
    """TIOCGPTN: the slave's number below its devpts."""
    return int(struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, b"\0" * 4))[0])


def peer(master: int, flags: int) -> int:
    """TIOCGPTPEER: open the slave without a path, so that nothing in the container can be put in its
    place.
    """
    return int(fcntl.ioctl(master, _TIOCGPTPEER, flags))


def make_controlling(slave: int) -> None:
    """TIOCSCTTY: the controlling terminal of our session."""
    fcntl.ioctl(slave, _TIOCSCTTY, 0)


def resize(terminal: int, width: int, height: int) -> None:
    """TIOCSWINSZ in characters; sends SIGWINCH to the foreground process group."""
    fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def unread(fd: int) -> int:
    """FIONREAD: how many bytes a terminal or a pipe has to be read."""
    return int(struct.unpack("i", fcntl.ioctl(fd, _FIONREAD, b"\0" * 4))[0])
