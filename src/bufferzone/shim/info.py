"""The shim's `-info`: what containerd 2.x asks before the first container of a runtime.

By the features it knows what pods may ask for, as with `bufferzone features`. Source: containerd
api/types/introspection.proto RuntimeInfo.
"""

from __future__ import annotations

import json

from bufferzone import __version__, config
from bufferzone.cli.oci.features import features
from bufferzone.wire.proto import Any_, Message, message, string, string_map

NAME = "io.containerd.bufferzone.v2"
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


class RuntimeVersion(Message):
    version: str = string(1)
    revision: str = string(2)


class RuntimeInfo(Message):
    name: str = string(1)
    version: RuntimeVersion | None = message(2, RuntimeVersion)
    features: Any_ | None = message(4, Any_)
    annotations: dict[str, str] = string_map(5)


def runtime_info() -> bytes:
    """RuntimeInfo as protobuf bytes."""
    told = Any_(type_url=_FEATURES, value=json.dumps(features(config.load())).encode())
    return RuntimeInfo(name=NAME, version=RuntimeVersion(version=__version__), features=told).encode()
