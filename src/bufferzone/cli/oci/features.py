"""`features`: what this runtime supports, as the runtime-spec's features JSON.

Source: runtime-spec features.md and features-linux.md. dockerd and CRI-O run it when they start.
"""

from __future__ import annotations

import json

from bufferzone import __version__, config, vmmfeatures
from bufferzone.cli import output
from bufferzone.linux import mountoptions
from bufferzone.linux.capability_names import CAPABILITIES
from bufferzone.oci.rules import NAMESPACES
from bufferzone.oci.schema import HOOK_NAMES
from bufferzone.setting import PREFIX
from bufferzone.state import OCI_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = ()
USAGE = ""
DESCRIPTION = (
    "Annotations tell the accelerator policy, what each VMM can do, and which bufferzone.* annotations a"
    " bundle may use here."
)
WORDS = (0, 0)
INTERSPERSED = True

_ACTIONS = "ALLOW ERRNO KILL KILL_PROCESS KILL_THREAD LOG TRACE TRAP"
_OPERATORS = "EQ GE GT LE LT MASKED_EQ NE"
_ARCHITECTURES = "X32 X86 X86_64"


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    output.print_text(json.dumps(features(config.load()), indent=4) + "\n")
    return 0


def features(settings: config.Settings) -> dict[str, Any]:
    """The features object under these settings."""
    mount_options = {*mountoptions.FLAGS, *mountoptions.RECURSIVE, *mountoptions.PROPAGATION, "tmpcopyup"}
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(HOOK_NAMES),
        "mountOptions": sorted(mount_options),
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": list(CAPABILITIES),
            "cgroup": {"v1": False, "v2": True, "systemd": True, "systemdUser": True, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": [f"SCMP_ACT_{name}" for name in _ACTIONS.split()],
                "operators": [f"SCMP_CMP_{name}" for name in _OPERATORS.split()],
                "archs": [f"SCMP_ARCH_{name}" for name in _ARCHITECTURES.split()],
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": _annotations(settings),
        "potentiallyUnsafeConfigAnnotations": [PREFIX],
    }


def _annotations(settings: config.Settings) -> dict[str, str]:
    allowed = settings.allow_annotations
    usable = [
        row.annotation
        for row in config.known_annotations()
        if row.open or row.annotation in allowed or row.annotation.removeprefix(PREFIX) in allowed
    ]
    return {
        "bufferzone.version": __version__,
        "bufferzone.isolation": "vm",
        "bufferzone.vmm": settings.vmm,
        **{
            f"bufferzone.vmm.{each.name}": ",".join(vmmfeatures.names(each))
            for each in vmmfeatures.BY_NAME.values()
        },
        "bufferzone.accelerator": settings.accelerator,
        "bufferzone.kvm": settings.kvm,
        "bufferzone.tcg-allowed": str(settings.kvm != "require").lower(),
        "bufferzone.annotations": ",".join(usable),
        "org.opencontainers.runc.checkpoint.enabled": "false",
    }
