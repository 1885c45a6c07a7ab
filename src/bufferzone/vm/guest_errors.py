"""What a guest says went wrong: it is hostile, and not believed in everything. Pure."""

from __future__ import annotations

from bufferzone.errors import BufferzoneError, ExecError, GuestError, SpecError, StateError
from bufferzone.wire import ttrpc
from bufferzone.wire.proto import DecodeError

_BELIEVED = (GuestError, ExecError, SpecError, StateError)
_MESSAGE, _HINT, _CODE = 4096, 1024, 64  # most characters of a guest's error
_CODE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def error_of(status: ttrpc.Status) -> BufferzoneError:
    """The error of a call that failed: bounded, printable, and of a class that a guest can know about.

    It ends in logs, on terminals and in state files, and callers act on class and code: a guest that says
    the VMM died, or that there is no such container to delete, is not believed.
    """
    try:
        told = ttrpc.error_of(status, GuestError)
    except DecodeError:
        told = GuestError(status.message)
    cls = type(told) if type(told) in _BELIEVED else GuestError
    code = told.code if _CODE_CHARACTERS.issuperset(told.code) and len(told.code) <= _CODE else ""
    return cls(_text(told.message, _MESSAGE), hint=_text(told.hint, _HINT), code=code)


def _text(text: str, most: int) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text[:most])
