"""What a checkpoint's manifest may hold. Pure: reads nothing, opens nothing.

A checkpoint travels, so its manifest is a stranger's: every field has a type and a range, and a value is
looked at before it is multiplied, joined to a path or printed. A field that is not in the table is refused,
since whoever wrote it meant something by it.
"""

from __future__ import annotations

from bufferzone import state
from bufferzone.config import ROWS
from bufferzone.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    #: raises ValueError saying what is wrong with a value
    Check = Callable[[Any], None]

MEMORY, STATE, DISK = "memory", "state", "disk"
KINDS = (MEMORY, STATE, DISK)
#: how the name of every file begins that is ours to remove
OURS = "bufferzone-"
_TOKEN = 16
_HEX = frozenset("0123456789abcdef")
_MIB = 1 << 20
#: the accelerator of what is no machine: it boots no files
_NO_MACHINE = "none"
#: linux: PATH_MAX; x86's COMMAND_LINE_SIZE, which bounds the arguments together
_MOST_PATH, _MOST_COMMAND_LINE = 4096, 2048
#: device state is some 350 KiB; an image of a root file system is a container's
_MOST_STATE, _MOST_DISK = 256 * _MIB, 1 << 42


def _integer(least: int, most: int) -> Check:
    def check(value: Any) -> None:
        if type(value) is not int:
            raise ValueError(f"expected a whole number, got {_kind(value)}")
        if not least <= value <= most:
            raise ValueError(f"must be {least} to {most}")

    return check


def _text(most: int) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"expected a string, got {_kind(value)}")
        if len(value) > most or not value.isprintable():
            raise ValueError(f"expected at most {most} printable characters")

    return check


def _hex(*digits: int) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, str) or len(value) not in digits or not _HEX.issuperset(value):
            raise ValueError("expected a hash in hexadecimal")

    return check


def _switch(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {_kind(value)}")


def _path(value: Any) -> None:
    """Absolute, or empty; see `_machine`."""
    _text(_MOST_PATH)(value)
    if value and not value.startswith("/"):
        raise ValueError("expected an absolute path")


def _one_of(*words: str) -> Check:
    def check(value: Any) -> None:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")

    return check


def _arguments(value: Any) -> None:
    """A part of the kernel's command line."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of strings")
    _text(_MOST_COMMAND_LINE)(" ".join(value))


def _container(value: Any) -> None:
    _text(state.MAX_ID)(value)
    try:
        state.check_id(value)
    except UsageError as error:
        raise ValueError("not the id of a container") from error


def _hashes(value: Any) -> None:
    """What `compatible.parts` gives: where it is in config.json, and a hash."""
    if not isinstance(value, dict) or len(value) > 1000:
        raise ValueError("expected an object of at most 1000 hashes")
    for key, item in value.items():
        _text(256)(key)
        _hex(16)(item)


IMAGE: dict[str, Check] = {
    "digest": _text(128),
    "directory": _path,
    "kernel": _path,
    "initrd": _path,
    "arguments": _arguments,
}
SHAPE: dict[str, Check] = {
    "image": lambda value: _object(value, IMAGE, "shape.image."),
    "kernel": _path,
    "initrd": _path,
    "kernel_arguments": _arguments,
    "accelerator": _one_of("kvm", "tcg", _NO_MACHINE),
    "vcpus": _integer(1, ROWS["vcpus"].maximum),
    "memory_mib": _integer(1, ROWS["memory_mib"].maximum),
    "vmm": _text(32),
    "nic": _switch,
    "user_network": _switch,
    "block": _switch,
}
FIELDS: dict[str, Check] = {
    "format": _integer(0, 1 << 16),
    "version": _text(64),
    "key": _text(128),
    "container": _container,
    "terminal": _switch,
    "created": _integer(0, (1 << 63) - 1),
    "spec": _hashes,
    "shape": lambda value: _object(value, SHAPE, "shape."),
    "files": lambda value: _object(value, dict.fromkeys(KINDS, _file), "files."),
    "seal": _hex(64),
}


def check(value: Any) -> None:
    """Raise ValueError, which says where, unless `value` is a manifest of this version's form."""
    _object(value, FIELDS, "")
    if value["shape"]["accelerator"] != _NO_MACHINE:
        _machine(value["shape"])
    most = {MEMORY: value["shape"]["memory_mib"] * _MIB, STATE: _MOST_STATE, DISK: _MOST_DISK}
    for kind, (name, size, _) in value["files"].items():
        if size > most[kind]:
            raise ValueError(f"files.{kind}: must be at most {most[kind]} bytes")
        if not is_file_name(name):
            raise ValueError(f"files.{kind}: not a name of ours: {name[:80]!a}")


def _machine(shape: dict[str, Any]) -> None:
    paths = {key: shape[key] for key in ("kernel", "initrd")}
    paths |= {f"image.{key}": shape["image"][key] for key in ("directory", "kernel", "initrd")}
    for key, path in paths.items():
        if not path:
            raise ValueError(f"shape.{key}: expected an absolute path")


def check_head(value: Any) -> None:
    """As `check`, of what every version has: enough to tell whose it is, and which files are its own."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {_kind(value)}")
    for key in ("container", "format", "version"):
        _field(value, key, FIELDS[key], "")
    if not isinstance(value.get("files"), dict):
        raise ValueError("files: expected an object")


def is_file_name(name: str) -> bool:
    """Whether `name` is one that we give to a file of a checkpoint."""
    kind, dash, token = name.removeprefix(OURS).partition("-")
    known = name.startswith(OURS) and kind in KINDS and dash == "-"
    return known and len(token) == _TOKEN and _HEX.issuperset(token)


def _file(value: Any) -> None:
    """[name, size in bytes, SHA-256]."""
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("expected a name, a size and a hash")
    _text(255)(value[0])
    _integer(0, _MOST_DISK)(value[1])
    _hex(64)(value[2])


def _object(value: Any, fields: dict[str, Check], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.')}: expected an object, got {_kind(value)}".lstrip(": "))
    strange = sorted(set(value) - set(fields))
    if strange:
        raise ValueError(f"{where}{strange[0][:80]!a}: unknown")
    for key, row in fields.items():
        _field(value, key, row, where)


def _field(value: dict[str, Any], key: str, row: Check, where: str) -> None:
    if key not in value:
        raise ValueError(f"{where}{key}: is missing")
    if row in _NESTED:
        row(value[key])
        return
    try:
        row(value[key])
    except ValueError as error:
        raise ValueError(f"{where}{key}: {error}") from error


#: rows that say themselves where they are
_NESTED = (SHAPE["image"], FIELDS["shape"], FIELDS["files"])


def _kind(value: Any) -> str:
    kinds = ((bool, "true or false"), (str, "a string"), (list, "a list"), (dict, "an object"))
    return next((name for cls, name in kinds if isinstance(value, cls)), "something else")
