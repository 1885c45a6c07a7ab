"""One settings file as keys and values. Knows how keys are written, and not what any of them means."""

from __future__ import annotations

from bufferzone import toml
from bufferzone.errors import CallerError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class ConfigError(CallerError):
    """A settings file cannot be used; the message starts with its path."""

    code = "bad-config"


def read(path: str, known: Mapping[str, object]) -> dict[str, Any]:
    """What is in the file, by key: a key with a dot is one of a TOML table, which only `known` ones say.

    A key may be one that is not known. Raises `ConfigError`, or `HostError` when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", code="config-unreadable") from error
    return parse(path, text, known)


def parse(path: str, text: bytes, known: Mapping[str, object]) -> dict[str, Any]:
    """The same of a text that `path` names for people. Raises `ConfigError`."""
    try:
        return _flat(toml.parse(text), known)
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"{path}: {error}") from error


def _flat(found: dict[str, Any], known: Mapping[str, object]) -> dict[str, Any]:
    """Tables as keys with a dot; one that is empty stays, to be found unknown or of the wrong type."""
    flat: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict) and value and key not in known:
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        elif value != {} or not any(one.startswith(f"{key}.") for one in known):
            flat[key] = value
    return flat
