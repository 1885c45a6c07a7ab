"""`update`: change resource limits of a container, in guest and host, from a file or from flags."""

from __future__ import annotations

import json

from bufferzone import oci
from bufferzone.cli.flags import Flag, ignored
from bufferzone.client import container
from bufferzone.errors import UsageError
from bufferzone.log import shown
from bufferzone.oci.rules import check_resources
from bufferzone.wire import task
from bufferzone.wire.proto import Any_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("resources r", "FILE|-", "linux.resources in JSON; the flags below are not looked at then"),
    Flag("memory", "BYTES", "memory limit; k, m and g multiply, -1 is no limit"),
    Flag("memory-reservation", "BYTES", "soft memory limit"),
    Flag("memory-swap", "BYTES", "limit of memory and swap together"),
    Flag("cpu-period", "USEC", "CFS period", kind="int"),
    Flag("cpu-quota", "USEC", "CFS quota in a period", kind="int"),
    Flag("cpu-burst", "USEC", "CFS burst", kind="int"),
    Flag("cpu-share", "N", "CPU shares", kind="int"),
    Flag("cpu-idle", "0|1", "SCHED_IDLE", kind="int"),
    Flag("cpu-rt-period", "USEC", "realtime period", kind="int"),
    Flag("cpu-rt-runtime", "USEC", "realtime runtime", kind="int"),
    Flag("cpuset-cpus", "LIST", "CPUs to use, those of the host"),
    Flag("cpuset-mems", "LIST", "memory nodes to use, those of the host"),
    Flag("pids-limit", "N", "most processes", kind="int"),
    Flag("blkio-weight", "N", "IO weight", kind="int"),
    ignored("kernel-memory", "BYTES", "gone from the kernel"),
    ignored("kernel-memory-tcp", "BYTES", "gone from the kernel"),
    Flag("l3-cache-schema", "TEXT", "refused: the guest has no resctrl", hidden=True),
    Flag("mem-bw-schema", "TEXT", "refused: the guest has no resctrl", hidden=True),
)
USAGE = "[options] <container-id>"
DESCRIPTION = "A limit beyond the size of the VM is refused. After an error nothing has changed."
WORDS = (1, 1)
INTERSPERSED = True

#: attribute -> (section, key of linux.resources)
_FIELDS = {
    "memory": ("memory", "limit"),
    "memory_reservation": ("memory", "reservation"),
    "memory_swap": ("memory", "swap"),
    "cpu_period": ("cpu", "period"),
    "cpu_quota": ("cpu", "quota"),
    "cpu_burst": ("cpu", "burst"),
    "cpu_share": ("cpu", "shares"),
    "cpu_idle": ("cpu", "idle"),
    "cpu_rt_period": ("cpu", "realtimePeriod"),
    "cpu_rt_runtime": ("cpu", "realtimeRuntime"),
    "cpuset_cpus": ("cpu", "cpus"),
    "cpuset_mems": ("cpu", "mems"),
    "pids_limit": ("pids", "limit"),
    "blkio_weight": ("blockIO", "weight"),
}
_BYTES = ("memory", "memory_reservation", "memory_swap")
_SHIFT = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def run(options: Options, words: list[str]) -> int:
    """Send the changes; what is not named stays as it is."""
    if {"l3_cache_schema", "mem_bw_schema"} & options.given:
        raise UsageError("linux.intelRdt cannot be changed: the guest has no resctrl")
    directory = container.find(options.root, words[0])
    resources = _from_file(options.resources) if options.resources else _from_flags(options)
    value = Any_(type_url=task.RESOURCES_URL, value=json.dumps(resources).encode())
    container.ask(directory, "Update", task.UpdateTaskRequest(id=words[0], resources=value), "update")
    return 0


def _from_file(path: str) -> dict[str, Any]:
    name = "standard input" if path == "-" else path
    data = oci.read_bytes("/dev/stdin" if path == "-" else path)
    return check_resources(oci.parse_object(data, name))


def _from_flags(options: Options) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    for attribute in _FIELDS:
        if attribute in options.given:
            section, key = _FIELDS[attribute]
            value = getattr(options, attribute)
            resources.setdefault(section, {})[key] = _bytes(value) if attribute in _BYTES else value
    if not resources and not options.given:
        raise UsageError("update needs --resources or a limit")
    return check_resources(resources)


def _bytes(text: str) -> int:
    """A size as docker writes it: 1024, 512m, 1g, -1."""
    number = text.lower().removesuffix("b").removesuffix("i")
    digits = number.rstrip("kmgt")
    unit = number[len(digits) :]
    if text == "-1":
        return -1
    if unit not in _SHIFT or not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise UsageError(f"invalid size: {shown(text)}", hint="like 1048576, 512m or 1g")
    return int(digits) << _SHIFT[unit]
