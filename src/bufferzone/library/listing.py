"""What there is to be seen of sandboxes: read from the state directory, whoever started them."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.errors import BufferzoneError
from bufferzone.library.values import Info, Port, Stats
from bufferzone.workload import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB = 1 << 20
_MOST_LOG = 16 << 20


def sandboxes(root: str) -> list[Info]:
    """All below a state root; what is being made or removed at this moment is left out."""
    found = []
    for name in state.list_ids(root):
        try:
            found.append(info(root, name))
        except (BufferzoneError, ValueError):
            continue  # it is being made or removed at this moment
    return found


def info(root: str, name: str) -> Info:
    """One of them; raises `NotFoundError`."""
    value = state.read_state(state.directory(root, name))
    annotations = dict(value["annotations"])
    return Info(
        name=name,
        status=value["status"],
        created=value["created"],
        accelerator=annotations.get("bufferzone.accelerator", ""),
        annotations=annotations,
        sandbox=annotations.get("bufferzone.sandbox", ""),
    )


def stats(counters: Mapping[str, int]) -> Stats:
    """The guest's counters as a value."""

    def mib(name: str) -> float | None:
        return counters[name] / _MIB if name in counters else None

    cpu_us = counters.get("cpu.usage_usec")
    return Stats(
        cpu_s=None if cpu_us is None else cpu_us / 1e6,
        memory_mib=mib("memory.current"),
        peak_memory_mib=mib("memory.peak"),
        processes=counters.get("pids.current"),
    )


def bundle_of(directory: str) -> str:
    """The bundle of the container whose state is in `directory`; raises `NotFoundError`."""
    return str(state.read_state(directory)["bundle"])


def ports(directory: str) -> list[Port]:
    """The published ports that its place names."""
    return [
        Port(address=port.address, host=port.host, guest=port.guest, protocol=port.protocol)
        for port in place.read_ports(bundle_of(directory))
    ]


def logs(directory: str) -> str:
    """What its command wrote: the last 16 MiB of each output."""
    text = b""
    for name in (place.OUT, place.ERR):
        try:
            with open(os.path.join(bundle_of(directory), name), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_LOG))
                text += file.read()
        except OSError:
            continue  # a bundle of somebody else's
    return text.decode("utf-8", "replace")
