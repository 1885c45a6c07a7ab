"""The config.json of a wish: pure. What a person did not say is as Docker has it.

Source: moby's oci/defaults.go and oci/caps for the capabilities.
"""

from __future__ import annotations

from bufferzone import egress
from bufferzone.errors import HostError, UsageError
from bufferzone.linux.capability_names import CAPABILITIES
from bufferzone.workload import default_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.workload.users import User
    from bufferzone.workload.wish import Wish

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = """
AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID
SYS_CHROOT
"""
ALL_CAPABILITIES = [name.removeprefix("CAP_") for name in CAPABILITIES]
_PERIOD_US = 100_000
INIT = "/dev/init"  # /dev is the guest's own, so that a place for it needs nothing of the root file system


def config_json(wish: Wish, *, user: User, mounts: list[dict[str, Any]], init: str) -> dict[str, Any]:
    """The value of config.json for a root file system at `rootfs` in the bundle.

    `user` is the wish's, looked up; `mounts` are what the root needs; `init` is the program of --init.
    Raises `UsageError`.
    """
    spec = default_spec.default_spec(rootless=False)
    spec["root"]["readonly"] = wish.read_only
    spec["hostname"] = wish.hostname
    spec["annotations"] = wish.annotations
    spec["mounts"] += [*mounts, *wish.mounts]
    if wish.rootfs:
        spec["root"]["path"] = wish.rootfs
    args = wish.args
    if wish.init or wish.idle:
        spec["mounts"].append(
            {"destination": INIT, "type": "bind", "source": init, "options": ["bind", "ro"]}
        )
        args = [INIT] if wish.idle else [INIT, "--", *args]
    spec["process"] = _process(wish, user, args)
    if wish.network == "passt" or wish.inside:
        spaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [entry for entry in spaces if entry["type"] != "network"]
    spec["linux"]["resources"].update(_resources(wish))
    return spec


def chosen(wish: Wish, disk: str = "") -> dict[str, Any]:
    """The settings of this one sandbox: see `oci.Spec`. `disk`: the file that its root file system is in."""
    found: dict[str, Any] = {"rootfs": "block"} if wish.rootfs else {}
    if disk:
        found["rootfs_image"] = disk
    if wish.egress is not None:
        found["egress"] = _egress(wish.egress)
    if wish.inside:
        return {**found, "host_network": "none"}  # that its config.json names no network is ours to know
    if wish.network == "passt":
        return {**found, "host_network": "passt", "publish": wish.publish}
    if wish.publish:
        raise UsageError("a port cannot be published without a network", hint="--network passt")
    return found


def _egress(wanted: list[str]) -> list[str]:
    """Rules that are some; none at all would be taken for a network that is open."""
    if fault := egress.fault(wanted) if wanted else "no rule is given":
        raise UsageError(f"egress: {fault}", hint=f"{egress.NONE}: nothing may be reached")
    return wanted


def _process(wish: Wish, user: User, args: list[str]) -> dict[str, Any]:
    own = {name.partition("=")[0] for name in wish.env}
    usual = {"PATH": _PATH, "HOSTNAME": wish.hostname, "HOME": user.home, "LANG": "C.UTF-8"}
    if wish.terminal:
        usual["TERM"] = "xterm"
    process: dict[str, Any] = {
        "terminal": wish.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args,
        "env": [*(f"{name}={value}" for name, value in usual.items() if name not in own), *wish.env],
        "cwd": wish.cwd or "/",
        "capabilities": _capabilities(wish, user),
    }
    limits = [_ulimit(name, soft, hard) for name, (soft, hard) in wish.ulimits.items()]
    return {**process, "rlimits": limits} if limits else process


def _ulimit(name: str, soft: int, hard: int) -> dict[str, Any]:
    return {"type": f"RLIMIT_{name.upper().removeprefix('RLIMIT_')}", "soft": soft, "hard": hard}


def _capabilities(wish: Wish, user: User) -> dict[str, list[str]]:
    """Docker's: root has them; anybody else may get them from a program that has some, and those that were
    asked for at once.
    """
    added, dropped = _names(wish.cap_add), _names(wish.cap_drop)
    usual = [] if "ALL" in dropped else ALL_CAPABILITIES if "ALL" in added else _CAPABILITIES.split()
    names = [
        *(name for name in usual if name not in dropped),
        *(n for n in added if n not in ("ALL", *usual)),
    ]
    bounding = [f"CAP_{name}" for name in names]
    if user.uid == 0:
        return dict.fromkeys(("bounding", "effective", "permitted"), bounding)
    asked = [f"CAP_{name}" for name in names if name in added]
    return {
        "bounding": bounding,
        **dict.fromkeys(("effective", "permitted", "inheritable", "ambient"), asked),
    }


def _names(words: list[str]) -> list[str]:
    names = [word.upper().removeprefix("CAP_") for word in words]
    for word, name in zip(words, names, strict=True):
        if name not in ("ALL", *ALL_CAPABILITIES):
            raise UsageError(f"unknown capability: {word[:60]!a}", hint="capabilities(7) lists them, or ALL")
    return names


def _resources(wish: Wish) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if wish.memory_bytes:
        found["memory"] = {"limit": wish.memory_bytes}
    if wish.cpus:
        found["cpu"] = {"quota": round(wish.cpus * _PERIOD_US), "period": _PERIOD_US}
    if wish.pids:
        found["pids"] = {"limit": wish.pids}
    return found


def find_init() -> str:
    """The program of --init on this host, static as it has to be. Raises `HostError`."""
    import os

    for path in ("/usr/libexec/podman/catatonit", "/usr/bin/catatonit"):
        if os.path.exists(path):
            return os.path.realpath(path)
    raise HostError("--init needs catatonit", hint="apt-get install catatonit", code="no-init")
