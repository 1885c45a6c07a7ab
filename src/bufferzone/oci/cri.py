"""CRI's annotations, which say that a container belongs to a pod, and from whom they are believed.

An image may carry any annotation, and engines copy them into config.json. So what these say counts only where
the engine itself says that it is one which makes pods: the shim was started by containerd, or the cgroup has
CRI-O's form, `SLICE:crio:ID` or `.../crio-ID`, which no image can bring about.
Source: containerd internal/cri/annotations, CRI-O pkg/annotations and internal/config/cgmgr.
"""

from __future__ import annotations

import os

from bufferzone.oci.cgroup_path import systemd_form

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PREFIXES = ("io.kubernetes.cri.", "io.kubernetes.cri-o.")
SANDBOX_ID, CRIO_SANDBOX_ID = "io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"
CONTAINER_TYPE = "io.kubernetes.cri.container-type"
#: who a pod is
POD_NAME, POD_NAMESPACE = "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace"
POD_UID = "io.kubernetes.cri.sandbox-uid"
#: what a pod's containers may use together: bytes, and microseconds of CPU time per period of as many
POD_MEMORY = "io.kubernetes.cri.sandbox-memory"
POD_CPU_QUOTA, POD_CPU_PERIOD = "io.kubernetes.cri.sandbox-cpu-quota", "io.kubernetes.cri.sandbox-cpu-period"
POD_LIMITS = (POD_MEMORY, POD_CPU_QUOTA, POD_CPU_PERIOD)
#: any of these means that the container is one of a pod's
_OF_A_POD = (SANDBOX_ID, CRIO_SANDBOX_ID, CONTAINER_TYPE)


def believed(spec: Mapping[str, Any], *, containerd: bool) -> dict[str, str]:
    """The CRI annotations of a config.json that count; none where the caller makes no pods.

    `containerd`: containerd started the shim.
    """
    path = str((spec.get("linux") or {}).get("cgroupsPath") or "")
    if not containerd and not _is_crio(path):
        return {}
    notes: Mapping[str, str] = spec.get("annotations") or {}
    return {key: text for key, text in notes.items() if key.startswith(_PREFIXES)}


def is_pod(notes: Mapping[str, str]) -> bool:
    """Whether believed annotations say that the container is one of a pod's."""
    return any(notes.get(key) for key in _OF_A_POD)


def _is_crio(cgroups_path: str) -> bool:
    if form := systemd_form(cgroups_path):
        return form[1] == "crio"
    return os.path.basename(cgroups_path.rstrip("/")).startswith("crio-")
