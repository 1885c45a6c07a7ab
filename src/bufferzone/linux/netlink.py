"""Netlink sockets: requests that are acknowledged, dumps, attributes. Knows no message family but the frame.

Source: netlink(7), linux/netlink.h. Host byte order; attributes are padded to four bytes.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_ERROR_TEXT = 0x200  # NLM_F_ACK_TLVS: a text follows the error
_SOL_NETLINK, _EXT_ACK, _STRICT_CHECK = 270, 11, 12
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without the bits "nested" and "network byte order"
_RECEIVE = 1 << 18
_TRIES = 10
#: answers to one dump: what nobody can be shown is not kept, however long a table somebody makes
_MOST = 16384
_TIMEOUT_S = 10


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute with a C string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """An attribute with a u32."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by kind, the last of a kind; bytes that are none end the list."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


class Netlink:
    """A NETLINK_ROUTE socket of the network namespace that the calling thread is in. For one thread.

    `groups` is a mask of RTMGRP_*: then changes are told, for `await_message`.
    """

    def __init__(self, groups: int = 0) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, groups))
        self._socket.settimeout(_TIMEOUT_S)
        self._serial = 0
        for option in (_EXT_ACK, _STRICT_CHECK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                pass  # before Linux 4.12, 4.20: errors without words, dumps that are not filtered

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket, to wait for."""
        return int(self._socket.fileno())

    def request(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Have one thing done; raises OSError with the kernel's own words where it has some."""
        self._send(kind, REQUEST | ACK | flags, body)
        for _ in self._answers():
            pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all answers; asked again when the table changed meanwhile. Raises OSError,
        E2BIG for a table that nobody keeps in memory."""
        for _ in range(_TRIES):
            self._send(kind, REQUEST | DUMP, body)
            found, whole = [], True
            for flags, answer in self._answers():
                whole = whole and not flags & _DUMP_INTERRUPTED
                found.append(answer)
                if len(found) > _MOST:
                    self._serial += 1  # the rest is nobody's
                    raise OSError(errno.E2BIG, f"more than {_MOST} entries of a kind")
            if whole:
                break
        return found

    def await_message(self, timeout_s: float) -> bool:
        """Wait until a change is told; False when `timeout_s` passed first."""
        self._socket.settimeout(timeout_s)
        try:
            self._socket.recv(_RECEIVE)
        except TimeoutError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more was told than was heard: something changed
                raise
        return True

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._serial += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._serial, 0)
        self._socket.sendto(header + body, (0, 0))

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """(flags, body) of each answer to the last message, up to its end."""
        while True:
            data = self._socket.recv(_RECEIVE)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, flags, serial, _ = _HEADER.unpack_from(data, at)
                body = data[at + _HEADER.size : at + length]
                at += max(_HEADER.size, (length + 3) & ~3)
                if serial != self._serial:
                    continue  # of a request that failed half way
                if kind in (_ERROR, _DONE):
                    _raise(body, flags)
                    return
                yield flags, body


def _raise(body: bytes, flags: int) -> None:
    """The OSError that an end of answers carries, if it does."""
    (code,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
    if code >= 0:
        return
    words = attributes(body[20:]).get(1, b"") if flags & _ERROR_TEXT and flags & 0x100 else b""
    told = words.rstrip(b"\0").decode(errors="replace")
    raise OSError(-code, f"{os.strerror(-code)}: {told}" if told else os.strerror(-code))
