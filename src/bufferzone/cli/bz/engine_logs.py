"""Logs that engines keep of the containers that they started: found where each keeps them, read as they are.

    Podman       BUNDLE/ctr.log                                     k8s-file; journald and none keep none
    Kubernetes   /var/log/pods/NAMESPACE_POD_UID/CONTAINER/N.log    the same form
    Docker       /var/lib/docker/containers/ID/ID-json.log          json-file, its default

Source: conmon(8) --log-path, Kubernetes' CRI logging format (design-proposals, kubelet-cri-logging), Docker's
documentation of json-file.
"""

from __future__ import annotations

import json
import os

from bufferzone import oci
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PODS, _DOCKER = "/var/log/pods", "/var/lib/docker/containers"
_CRI = "io.kubernetes.cri."
_STREAMS = {"stdout": 1, "stderr": 2}


class EngineLog:
    """A log that is open: `read` gives (1 or 2, bytes) for each line that is there by now."""

    def __init__(self, fd: int, parse: Callable[[bytes], tuple[int, bytes]]) -> None:
        self._fd, self._parse, self._rest = fd, parse, b""

    def read(self) -> Iterator[tuple[int, bytes]]:
        """What was added; a line that is not whole waits for the rest."""
        while data := os.read(self._fd, 1 << 16):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield self._parse(line)


def find(directory: str, bundle: str, namespace: str) -> EngineLog | None:
    """That of the container whose state is in `directory`; None where its engine keeps none in a file.
    `namespace` is containerd's, empty for another engine.
    """
    id = os.path.basename(directory)
    if namespace == "moby":
        return _open(os.path.join(_DOCKER, id, f"{id}-json.log"), parse_docker)
    if namespace:
        return _open(_of_pod(bundle), parse_cri)
    return _open(os.path.join(bundle, "ctr.log"), parse_cri)


def _open(path: str, parse: Callable[[bytes], tuple[int, bytes]]) -> EngineLog | None:
    try:
        return EngineLog(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), parse)
    except OSError:
        return None


def _of_pod(bundle: str) -> str:
    """The newest log of a container of the kubelet's; empty: it is none."""
    try:
        found = oci.load(bundle, containerd=True).annotations
    except BufferzoneError:
        return ""
    parts = [
        found.get(_CRI + name, "")
        for name in ("sandbox-namespace", "sandbox-name", "sandbox-uid", "container-name")
    ]
    if not all(parts) or any("/" in part or part in (".", "..") for part in parts):
        return ""
    place = os.path.join(_PODS, "_".join(parts[:3]), parts[3])
    try:
        numbers = [
            int(name[:-4]) for name in os.listdir(place) if name[:-4].isdigit() and name.endswith(".log")
        ]
    except OSError:
        return ""
    return os.path.join(place, f"{max(numbers)}.log") if numbers else ""


def parse_cri(line: bytes) -> tuple[int, bytes]:
    """TIME stdout|stderr F|P TEXT: the text of a whole line (F), or of a part of one."""
    _, stream, tag, text = [*line.split(b" ", 3), b"", b"", b""][:4]
    return _STREAMS.get(stream.decode("ascii", "replace"), 1), text if tag == b"P" else text + b"\n"


def parse_docker(line: bytes) -> tuple[int, bytes]:
    """An object with `log` and `stream`; anything else is told as it is."""
    try:
        found = json.loads(line)
        return _STREAMS.get(found["stream"], 1), str(found["log"]).encode("utf-8", "surrogateescape")
    except (ValueError, TypeError, KeyError):
        return 1, line + b"\n"
