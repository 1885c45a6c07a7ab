"""What a spec names on the host: a container's plan with the facts found there, copies of small files."""

from __future__ import annotations

import os
import stat

from bufferzone.errors import HostError
from bufferzone.sandbox import plan
from bufferzone.wire import agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone import oci
    from bufferzone.model import FileCopy


def needs_share(spec: oci.Spec) -> bool:
    """Whether a container whose root file system is on a disk has volumes all the same."""
    return bool(plan_of(spec.raw, "container", spec.bundle, block=True).binds)


def plan_of(
    spec: dict[str, Any],
    container_id: str,
    bundle: str,
    *,
    block: bool,
    neighbour: Callable[[int], str] | None = None,
) -> plan.ContainerPlan:
    """The container that `spec` describes, as `plan.plan_container` does, with the facts of this host."""
    return plan.plan_container(
        spec,
        container_id=container_id,
        bundle=bundle,
        tmpfs_size=_tmpfs_size,
        is_small=_is_small if block else None,
        neighbour=neighbour,
    )


def _is_small(path: str) -> bool:
    """Whether it is a regular file that fits into one message."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= agent.MOST_FILE


def read_file(file: FileCopy) -> agent.FileRequest:
    """A small file as a message; raises `HostError`."""
    try:
        with open(file.source, "rb", buffering=0) as opened:
            found, data = os.fstat(opened.fileno()), opened.read(agent.MOST_FILE) or b""
    except OSError as error:
        raise HostError(f"cannot read {file.source}: {error.strerror}", code="volume") from error
    return agent.FileRequest(
        name=file.name, data=data, mode=found.st_mode & 0o777, uid=found.st_uid, gid=found.st_gid
    )


def _tmpfs_size(path: str) -> int:
    """Bytes of the tmpfs mounted exactly at `path`, or 0 when something else is there."""
    real = os.path.realpath(path)
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split()[4] == real and right.startswith("tmpfs "):
                facts = os.statvfs(real)
                return facts.f_blocks * facts.f_frsize
    return 0
