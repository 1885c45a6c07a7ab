"""ttrpc frames and envelopes, without any I/O. Unary calls only.

Source: containerd/ttrpc PROTOCOL.md: 10-byte header (length, stream id, type, flags; big endian),
at most 4 MiB of payload, client streams odd and increasing.
"""

from __future__ import annotations

import struct

from bufferzone.errors import BufferzoneError, all_error_classes, class_in_tree
from bufferzone.wire.proto import Any_, Message, blob, message, messages, sint, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    class Frame(NamedTuple):
        stream: int
        type: int
        flags: int
        payload: bytes
else:

    class Frame(tuple):
        """(stream, type, flags, payload)."""

        __slots__ = ()

        def __new__(cls, stream, type, flags, payload):
            return tuple.__new__(cls, (stream, type, flags, payload))

        stream = property(lambda self: self[0])
        type = property(lambda self: self[1])
        flags = property(lambda self: self[2])
        payload = property(lambda self: self[3])


HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3

OK, UNKNOWN, INVALID_ARGUMENT, DEADLINE, NOT_FOUND, ALREADY_EXISTS = 0, 2, 3, 4, 5, 6
FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 9, 12, 13, 14

ERROR_TYPE_URL = "bufferzone.v1.Error"
#: metadata of a request in which containerd, or CRI-O in its stead, names its namespace
CONTAINERD_NAMESPACE = "containerd-namespace-ttrpc"


class ProtocolError(Exception):
    """The peer does not speak ttrpc; the connection is of no further use."""


class KeyValue(Message):
    key: str = string(1)
    value: str = string(2)


class Request(Message):
    service: str = string(1)
    method: str = string(2)
    payload: bytes = blob(3)
    timeout_nano: int = sint(4)
    metadata: list[KeyValue] = messages(5, KeyValue)


class Status(Message):
    """google.rpc.Status."""

    code: int = sint(1)
    message: str = string(2)
    details: list[Any_] = messages(3, Any_)


class Response(Message):
    status: Status | None = message(1, Status)
    payload: bytes = blob(2)


class ErrorDetail(Message):
    """Our own detail of a Status: the stable code and the hint of a `BufferzoneError`."""

    code: str = string(1)
    hint: str = string(2)
    cls: str = string(3)


def encode_frame(stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    """One frame; raises `ProtocolError` when the payload exceeds 4 MiB."""
    if len(payload) > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {len(payload)} bytes exceeds {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), stream, kind, flags) + payload


class FrameReader:
    """Cuts a byte stream into frames. Holds at most one frame of 4 MiB plus what `feed` was given."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = HEADER.size  # with fewer bytes nothing can be said

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes and return the frames now complete; raises `ProtocolError` on an impossible header."""
        self._buffer += data
        if len(self._buffer) < self._wanted:
            return []
        frames, at, self._wanted = [], 0, HEADER.size
        while len(self._buffer) - at >= HEADER.size:
            size, stream, kind, flags = HEADER.unpack_from(self._buffer, at)
            if size > MAX_PAYLOAD or kind not in (REQUEST, RESPONSE, DATA):
                raise ProtocolError(f"frame of type {kind} with {size} bytes")
            end = at + HEADER.size + size
            if len(self._buffer) < end:
                self._wanted = end - at
                break
            frames.append(Frame(stream, kind, flags, bytes(self._buffer[at + HEADER.size : end])))
            at = end
        del self._buffer[:at]
        return frames


def status_of(error: BaseException, *, ours: bool = True) -> Status:
    """An exception as a Status; ours keep code, class and hint in a detail.

    Without it where it is not one of `ours` that asks: containerd 2 adds a second error to one whose details
    it does not know (errgrpc.ToNative). The hint is in the line then.
    """
    if not isinstance(error, BufferzoneError):
        return Status(code=UNKNOWN, message=f"{type(error).__name__}: {error}")
    if not ours:
        return Status(code=error.rpc_code, message=error.line())
    detail = ErrorDetail(code=error.code, hint=error.hint, cls=class_in_tree(error).__name__)
    any_ = Any_(type_url=ERROR_TYPE_URL, value=detail.encode())
    return Status(code=error.rpc_code, message=error.message, details=[any_])


def error_of(status: Status, fallback: type[BufferzoneError]) -> BufferzoneError:
    """The exception a Status stands for: ours where a detail names one, else by code, else `fallback`."""
    classes = {cls.__name__: cls for cls in all_error_classes()}
    for any_ in status.details:
        if any_.type_url == ERROR_TYPE_URL:
            detail = ErrorDetail.decode(any_.value)
            return classes.get(detail.cls, fallback)(status.message, hint=detail.hint, code=detail.code)
    if status.code in (INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION):
        for cls in classes.values():
            if cls.__dict__.get("rpc_code") == status.code:
                return cls(status.message)
    return fallback(status.message)
