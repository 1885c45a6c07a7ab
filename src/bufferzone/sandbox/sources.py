"""What a spec names on the host: a container's plan with the facts found there."""

from __future__ import annotations

import os
import stat

from bufferzone.sandbox import plan
from bufferzone.wire import agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone import oci


def needs_share(spec: oci.Spec) -> bool:
    """Whether a container whose root file system is on a disk has volumes all the same."""
    return bool(plan_of(spec.raw, "container", spec.bundle, block=True).binds)


def plan_of(
    spec: dict[str, Any],
    container_id: str,
    bundle: str,
    *,
    block: bool,
    other_container: Callable[[int], str] | None = None,
) -> plan.ContainerPlan:
    """The container that `spec` describes, as `plan.plan_container` does, with the facts of this host."""
    return plan.plan_container(
        spec,
        container_id=container_id,
        bundle=bundle,
        tmpfs_size=_tmpfs_size,
        is_small=_is_small if block else None,
        other_container=other_container,
    )


def _is_small(path: str) -> bool:
    """Whether it is a regular file that fits into one message."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= agent.MOST_FILE


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
