"""`spec`: write a config.json to start from."""

from __future__ import annotations

import json
import os

from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError
from bufferzone.state import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("bundle b", "DIR", "directory to write it to", default="."),
    Flag("rootless", "", "for a user without root's rights"),
)
USAGE = "[options]"
DESCRIPTION = "Runs sh on a terminal in the directory rootfs. A config.json that is there stays as it is."
WORDS = (0, 0)
INTERSPERSED = True

_SEALED = ["nosuid", "noexec", "nodev"]
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_MASKED = """
/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats
/proc/sched_debug /sys/firmware /proc/scsi
"""
_READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"


def run(options: Options, words: list[str]) -> int:
    """Write it."""
    path = os.path.join(options.bundle, "config.json")
    text = json.dumps(default_spec(rootless=options.rootless), indent="\t") + "\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError as error:
        raise UsageError(f"file {path} exists", hint="remove it first") from error
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
    except OSError as error:
        os.unlink(path)
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    return 0


def default_spec(*, rootless: bool) -> dict[str, Any]:
    """A config.json with the content of runc's, as a dict."""
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(),
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "bufferzone",
        "mounts": _mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": _MASKED.split(),
            "readonlyPaths": _READ_ONLY.split(),
        },
    }
    if rootless:
        _make_rootless(spec)
    return spec


def _process() -> dict[str, Any]:
    return {
        "terminal": True,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    return {**mount, "options": list(options)} if options else mount


def _mounts() -> list[dict[str, Any]]:
    return [
        _mount("/proc", "proc", "proc"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/dev/shm", "tmpfs", "shm", *_SEALED, "mode=1777", "size=65536k"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_SEALED),
        _mount("/sys", "sysfs", "sysfs", *_SEALED, "ro"),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *_SEALED, "relatime", "ro"),
    ]


def _make_rootless(spec: dict[str, Any]) -> None:
    """As runc's specconv: a user namespace with the caller as root, no device rules, no gid for devpts."""
    linux = spec["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != "network"] + [{"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    del linux["resources"]
    for mount in spec["mounts"]:
        if "options" in mount:
            mount["options"] = [o for o in mount["options"] if not o.startswith(("gid=", "uid="))]
