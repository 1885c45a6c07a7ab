"""What an image asks for: the `config` of its configuration blob. It is hostile: types are looked at, sizes
are bounded by the blob's. Source: OCI image-spec, config.md; Docker's Healthcheck beside it.
"""

from __future__ import annotations

from bufferzone.errors import HostError
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Config(Record):
    """Entry point and command, K=V, who runs it where, places for volumes, the signal that stops it.

    `healthcheck` is Docker's object or empty; `ports` are such as 80/tcp. `env`, `args` and so on may be
    empty: the image does not say.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    ports: tuple[str, ...] = ()
    labels: dict[str, str]
    healthcheck: dict[str, Any]
    created: str = ""


EMPTY = Config(labels={}, healthcheck={})


def read(blob: Any) -> Config:
    """The configuration blob as parsed from JSON. Raises `HostError` `bad-image`."""
    value = blob.get("config") if isinstance(blob, dict) else None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise _bad("config")
    return Config(
        entrypoint=_strings(value, "Entrypoint"),
        cmd=_strings(value, "Cmd"),
        env=tuple(word for word in _strings(value, "Env") if "=" in word[1:]),
        user=_string(value, "User"),
        workdir=_string(value, "WorkingDir"),
        volumes=tuple(_keys(value, "Volumes")),
        stop_signal=_string(value, "StopSignal"),
        ports=tuple(_keys(value, "ExposedPorts")),
        labels={k: v for k, v in _object(value, "Labels").items() if isinstance(v, str)},
        healthcheck=_object(value, "Healthcheck"),
        created=str(blob.get("created") or ""),
    )


def _bad(name: str) -> HostError:
    return HostError(f"this is not the configuration of an image: {name}", code="bad-image")


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name) or {}
    if not isinstance(found, dict):
        raise _bad(name)
    return found


def _keys(value: dict[str, Any], name: str) -> list[str]:
    found = list(_object(value, name))
    if any("\0" in word for word in found):
        raise _bad(name)
    return found


def _string(value: dict[str, Any], name: str) -> str:
    found = value.get(name) or ""
    if not isinstance(found, str) or "\0" in found:
        raise _bad(name)
    return found


def _strings(value: dict[str, Any], name: str) -> tuple[str, ...]:
    found = value.get(name) or []
    if not isinstance(found, list) or not all(isinstance(word, str) and "\0" not in word for word in found):
        raise _bad(name)
    return tuple(found)
