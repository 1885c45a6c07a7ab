"""The shim's `-info`: what containerd 2.x asks before the first container of a runtime.

Source: containerd api/types/introspection.proto RuntimeInfo.
"""

from __future__ import annotations

from bufferzone import __version__
from bufferzone.wire.proto import Message, message, string, string_map

NAME = "io.containerd.bufferzone.v2"


class RuntimeVersion(Message):
    version: str = string(1)
    revision: str = string(2)


class RuntimeInfo(Message):
    name: str = string(1)
    version: RuntimeVersion | None = message(2, RuntimeVersion)
    annotations: dict[str, str] = string_map(5)


def runtime_info() -> bytes:
    """RuntimeInfo as protobuf bytes."""
    return RuntimeInfo(name=NAME, version=RuntimeVersion(version=__version__)).encode()
