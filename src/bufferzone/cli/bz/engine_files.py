"""What the configuration files of containerd, Docker and CRI-O say of this runtime: text in, text out.

Nothing else in a file is changed. In containerd's the tables stand between two lines of ours: a file that
`imports` brings in replaces the CRI plug-in's section before containerd 2, and what was set there is lost.
Source: containerd docs/cri/config.md, dockerd daemon.json, CRI-O crio.conf.d(5).
"""

from __future__ import annotations

import json

from bufferzone import toml
from bufferzone.errors import UsageError
from bufferzone.log import shown

NAME = "bufferzone"
RUNTIME = "io.containerd.bufferzone.v2"
_BEGIN = "# begin bufferzone: made by `bz node setup`, removed by `bz node undo`"
_END = "# end bufferzone"
#: the CRI plug-in's runtimes, by the version of the file
_CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_CRIO = """\
# made by `bz node setup`, removed by `bz node undo`
[crio.runtime.runtimes.bufferzone]
runtime_path = "{program}"
runtime_type = "oci"
runtime_root = "/run/bufferzone"
allowed_annotations = ["bufferzone.memory", "bufferzone.vcpus"]
"""


def with_containerd(text: str) -> str:
    """config.toml with our runtime; an empty one becomes one of version 2, which every containerd reads.

    Raises `UsageError` for a file that is not TOML, of version 1, or that has a runtime of this name.
    """
    kept = without_containerd(text)
    if not kept.strip():
        kept = "version = 2\n"
    version = _parse(kept).get("version", 1)
    if not isinstance(version, int) or version not in _CRI:
        raise UsageError(
            f"config.toml: version {shown(str(version))}: not supported", hint="containerd config migrate"
        )
    table = f'plugins."{_CRI[version]}".containerd.runtimes.{NAME}'
    if _find(_parse(kept), "plugins", _CRI[version], "containerd", "runtimes", NAME) is not None:
        raise UsageError(f"config.toml: has a runtime {NAME} already", hint="remove it, or leave it as it is")
    lines = [
        _BEGIN,
        f"[{table}]",
        f'  runtime_type = "{RUNTIME}"',
        "  privileged_without_host_devices = true",
        f'  pod_annotations = ["{NAME}.*"]',
        f'  container_annotations = ["{NAME}.*"]',
        _END,
    ]
    return "\n".join([*kept.rstrip("\n").split("\n"), *lines, ""])


def without_containerd(text: str) -> str:
    """config.toml without our runtime; empty where nothing else was in it."""
    before, begin, rest = text.partition(f"{_BEGIN}\n")
    if not begin:
        return text
    _, end, after = rest.partition(f"{_END}\n")
    if not end:
        raise UsageError(f"config.toml: the line is missing: {_END}", hint="remove our tables by hand")
    kept = before + after
    return "" if kept.strip() == "version = 2" else kept


def with_docker(text: str, program: str) -> str:
    """daemon.json with our runtime. Raises `UsageError` for one that is no JSON object, or has another
    runtime of this name.
    """
    settings = _parse_json(text)
    ours = {"path": program}
    if settings.setdefault("runtimes", {}).setdefault(NAME, ours) != ours:
        raise UsageError(f"daemon.json: has a runtime {NAME} already", hint="remove it, or leave it as it is")
    return json.dumps(settings, indent=4) + "\n"


def without_docker(text: str) -> str:
    """daemon.json without it; empty where nothing else was in it."""
    settings = _parse_json(text)
    runtimes = settings.get("runtimes")
    if not isinstance(runtimes, dict) or NAME not in runtimes:
        return text
    del runtimes[NAME]
    if not runtimes:
        del settings["runtimes"]
    return json.dumps(settings, indent=4) + "\n" if settings else ""


def with_crio(text: str, program: str) -> str:
    """The drop-in, which is ours alone."""
    return _CRIO.format(program=program)


def _parse(text: str) -> dict[str, object]:
    try:
        return toml.parse(text.encode())
    except ValueError as error:
        raise UsageError(f"config.toml: {error}") from error


def _parse_json(text: str) -> dict[str, dict[str, object]]:
    try:
        settings = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise UsageError(f"daemon.json: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("runtimes", {}), dict):
        raise UsageError("daemon.json: expected an object, with an object named runtimes in it")
    return settings


def _find(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
