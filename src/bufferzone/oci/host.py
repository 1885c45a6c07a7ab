"""What a config.json names on this host: looked for before anything is started or written.

Nothing is opened. What is gone a moment later is found by whoever opens it.
"""

from __future__ import annotations

import os

from bufferzone import config
from bufferzone.oci.check import fail
from bufferzone.oci.overrides import apply_annotations, apply_vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.oci import Spec


def check_host(spec: Spec) -> None:
    """Raise `SpecError` for a volume or network namespace that is not there, or a setting that is refused."""
    apply_vm(apply_annotations(config.load(), spec.annotations), spec.vm)
    for index, mount in enumerate(spec.mounts):
        if mount.get("type") == "bind" or {"bind", "rbind"} & set(mount.get("options", [])):
            where = f"mounts[{index}].source"
            if not mount.get("source"):
                raise fail(where, "a bind mount needs one")
            _check_there(where, os.path.join(spec.bundle, mount["source"]))
    for index, namespace in enumerate(spec.linux.get("namespaces", [])):
        if namespace["type"] == "network" and namespace.get("path"):
            _check_there(f"linux.namespaces[{index}].path", namespace["path"])


def _check_there(where: str, path: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        reason = (error.strerror or "cannot be looked at").lower()
        raise fail(where, f"{reason}: {path}") from error
