"""Bundles to run: Debian's static busybox and one process, the same for every runtime."""

from __future__ import annotations

import json
import os
import shutil

from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUSYBOX = "/bin/busybox"
_APPLETS = ("echo", "sh", "sleep")
#: one byte says that it lives, then it stays
COMMAND = "echo; exec sleep 100000"


def make_rootfs(path: str) -> None:
    """A root file system in the new directory `path`; raises `HostError` where there is no busybox."""
    os.makedirs(os.path.join(path, "bin"))
    for name in ("dev", "proc", "sys", "tmp"):
        os.mkdir(os.path.join(path, name))
    try:
        shutil.copy(BUSYBOX, os.path.join(path, "bin"))
    except OSError as error:
        hint = "apt-get install busybox-static"
        raise HostError(f"cannot copy {BUSYBOX}: {error.strerror}", hint=hint) from error
    for name in _APPLETS:
        os.symlink("busybox", os.path.join(path, "bin", name))


def config(rootfs: str, annotations: dict[str, str]) -> dict[str, Any]:
    """The config.json: no cgroup path, no limits and no seccomp profile, so that every runtime takes it
    everywhere.
    """
    capabilities = ["CAP_KILL"]
    sets = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", COMMAND],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": sets,
        },
        "root": {"path": rootfs},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
        ],
        "annotations": annotations,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }


def make_bundle(path: str, rootfs: str, annotations: dict[str, str]) -> str:
    """Write a bundle into the new directory `path` and return it; `rootfs` is absolute."""
    os.mkdir(path)
    with open(os.path.join(path, "config.json"), "x", encoding="utf-8") as file:
        json.dump(config(rootfs, annotations), file)
    return path
