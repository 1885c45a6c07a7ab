"""config.json: read, checked completely, handed on as it is. Defaults nothing, changes nothing on the host.

    spec = load("/path/to/bundle")
    SpecError: config.json: process.args[0]: expected a string, got number

Unknown keys stay (other tools put theirs there), nulls are dropped as Go drops them.
"""

from __future__ import annotations

import os

from bufferzone import jsontext
from bufferzone.errors import SpecError
from bufferzone.oci.check import check, check_depth, fail, type_name
from bufferzone.oci.rules import (
    OTHER_PLATFORMS,
    check_hooks,
    check_linux,
    check_mounts,
    check_names,
    check_process,
    check_version,
)
from bufferzone.oci.schema import SPEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Spec", "load", "parse_object", "validate"]

MAX_SIZE = 16 << 20


class Spec:
    """A checked config.json: `raw` is the whole of it, the rest are views on what everybody asks for."""

    def __init__(
        self,
        raw: dict[str, Any],
        bundle: str,
        *,
        containerd: bool = False,
        chosen: dict[str, Any] | None = None,
    ) -> None:
        """`containerd`: containerd started the shim that reads it, so that what it says of pods counts.

        `chosen`: settings by attribute, from whoever starts it and may write settings files as well. They
        come after the files and the annotations; nothing in the bundle can say them.
        """
        self.raw = raw
        self.bundle = bundle
        self.chosen = chosen or {}
        self._containerd = containerd

    @property
    def pod(self) -> dict[str, str]:
        """The annotations that make it one of a pod's containers, where they are to be believed."""
        from bufferzone.oci import cri  # nothing that an exec asks for

        return cri.believed(self.raw, containerd=self._containerd)

    @property
    def process(self) -> dict[str, Any]:
        """The process object; empty when the bundle has none."""
        value: dict[str, Any] = self.raw.get("process", {})
        return value

    @property
    def terminal(self) -> bool:
        """Whether the container's process has a terminal."""
        return bool(self.process.get("terminal", False))

    @property
    def rootfs(self) -> str:
        """The root file system as an absolute path."""
        return os.path.normpath(os.path.join(self.bundle, self.raw["root"]["path"]))

    @property
    def root_read_only(self) -> bool:
        """Whether the root file system is read-only inside."""
        return bool(self.raw["root"].get("readonly", False))

    @property
    def mounts(self) -> list[dict[str, Any]]:
        """The mounts in order; destinations are absolute."""
        value: list[dict[str, Any]] = self.raw.get("mounts", [])
        return value

    @property
    def annotations(self) -> dict[str, str]:
        """All annotations."""
        value: dict[str, str] = self.raw.get("annotations", {})
        return value

    @property
    def linux(self) -> dict[str, Any]:
        """The linux section; empty when absent."""
        value: dict[str, Any] = self.raw.get("linux", {})
        return value

    @property
    def vm(self) -> dict[str, Any]:
        """The standard vm section; empty when absent."""
        value: dict[str, Any] = self.raw.get("vm", {})
        return value

    @property
    def hostname(self) -> str:
        """The hostname, or empty."""
        return str(self.raw.get("hostname", ""))

    @property
    def cgroups_path(self) -> str:
        """linux.cgroupsPath, or empty."""
        return str(self.linux.get("cgroupsPath", ""))

    @property
    def has_hooks(self) -> bool:
        """Whether there is one of any kind."""
        return any(self.raw.get("hooks", {}).values())

    def hooks(self, name: str) -> list[dict[str, Any]]:
        """The hooks of one kind: prestart, createRuntime, ..."""
        value: list[dict[str, Any]] = self.raw.get("hooks", {}).get(name, [])
        return value

    def namespace(self, kind: str) -> dict[str, str] | None:
        """The entry of linux.namespaces of one kind, or None."""
        for entry in self.linux.get("namespaces", []):
            if entry["type"] == kind:
                found: dict[str, str] = entry
                return found
        return None


def load(bundle: str, *, containerd: bool = False, chosen: dict[str, Any] | None = None) -> Spec:
    """Read and check BUNDLE/config.json; the root file system must be a directory.

    `containerd` and `chosen` as in `Spec`. Raises `SpecError` whose message starts with the JSON path;
    nothing is changed on disk.
    """
    bundle = os.path.abspath(bundle)
    raw = parse_object(read_bytes(os.path.join(bundle, "config.json")))
    spec = Spec(raw, bundle, containerd=containerd, chosen=chosen)
    validate(spec.raw)
    if not os.path.isdir(spec.rootfs):
        reason = "not a directory" if os.path.lexists(spec.rootfs) else "no such directory"
        raise fail("root.path", f"{reason}: {spec.rootfs}")
    return spec


def read_bytes(path: str) -> bytes:
    """A JSON file of at most 16 MiB; raises `SpecError`."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise SpecError(f"{path}: {(error.strerror or str(error)).lower()}", code="no-spec") from error
    if data is None or len(data) > MAX_SIZE:
        raise SpecError(f"{path}: larger than {MAX_SIZE >> 20} MiB")
    return data


def parse_object(data: bytes, name: str = "config.json") -> dict[str, Any]:
    """JSON bytes as an object, strict about what JSON is; errors carry line and column."""

    def refuse(constant: str) -> Any:
        raise SpecError(f"{name}: {constant} is not JSON")

    try:
        value = jsontext.loads(data.decode("utf-8"), refuse)
        broken = (b"\\ud" in data or b"\\uD" in data) and _has_half_a_pair(value)
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise SpecError(f"{name}: nested too deeply") from error
    except ValueError as error:
        raise SpecError(f"{name}: {_json_fault(error)}", code="bad-json") from error
    if broken:
        raise SpecError(f"{name}: a string has half of a surrogate pair", code="bad-json")
    if not isinstance(value, dict):
        raise SpecError(f"{name}: expected an object, got {type_name(value)}")
    return value


def _has_half_a_pair(value: Any) -> bool:
    """Whether a text in it is none in UTF-8: JSON can spell \\ud800, and no program can be given that."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(_has_half_a_pair(part) for item in value.items() for part in item)
    return isinstance(value, list) and any(_has_half_a_pair(item) for item in value)


def _json_fault(error: ValueError) -> str:
    message = getattr(error, "msg", "")
    if not message:
        return "number too long"  # int() refuses more than 4300 digits
    place = f"line {getattr(error, 'lineno', 0)} column {getattr(error, 'colno', 0)}"
    return f"{place}: {message[:1].lower()}{message[1:]}"


def validate(raw: dict[str, Any]) -> None:
    """Check a parsed config.json. In place, nulls are removed and mount destinations made absolute."""
    check_depth(raw)
    check(raw, SPEC, "")
    if "ociVersion" not in raw:
        raise fail("ociVersion", "is missing")
    check_version(raw["ociVersion"])
    for platform in OTHER_PLATFORMS:
        if platform in raw and "linux" not in raw:
            raise fail(
                platform, "this container is made for another platform", "bufferzone runs Linux containers"
            )
    if not raw.get("root", {}).get("path"):
        raise fail("root.path", "is missing")
    if "process" not in raw:
        raise fail("process", "is missing")
    check_names(raw)
    check_process(raw["process"])
    check_mounts(raw.get("mounts", []))
    check_hooks(raw.get("hooks", {}))
    check_linux(raw.get("linux", {}))
    if raw.get("annotations"):
        from bufferzone.oci.overrides import (
            parse_annotations,  # brings the settings, which exec does not need
        )

        parse_annotations(raw["annotations"])
