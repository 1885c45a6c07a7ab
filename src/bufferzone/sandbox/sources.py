"""What a spec names on the host: a container's plan with the facts found there."""

from __future__ import annotations

import os
import stat

from bufferzone.linux import mounttable
from bufferzone.sandbox import mounts, plan
from bufferzone.wire import agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone import oci


#: mounts below a read-only volume that the guest is told of
_MOST_BELOW = 256


def shared(spec: oci.Spec) -> tuple[str, ...]:
    """What a container with its root file system on a disk shares with its guest all the same: volumes."""
    return tuple(bind.source for bind in plan_of(spec.raw, "container", spec.bundle, block=True).binds)


def plan_of(
    spec: dict[str, Any],
    container_id: str,
    bundle: str,
    *,
    block: bool,
    other_container: Callable[[int], str] = lambda pid: "",
    ipc_of: str = "",
) -> plan.ContainerPlan:
    """The container that `spec` describes, as `plan.plan_container` does, with the facts of this host."""
    return plan.plan_container(
        spec,
        container_id=container_id,
        bundle=bundle,
        host=_Host(),
        is_small=_is_small if block else None,
        other_container=other_container,
        ipc_of=ipc_of,
    )


def _is_small(path: str) -> bool:
    """Whether it is a regular file that fits into one message."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size <= agent.MOST_FILE


class _Host(mounts.Host):
    """This machine, as the calling thread sees it: another mount namespace, other paths."""

    def real(self, path: str) -> str:
        return os.path.realpath(path)

    def mounted_below(self, path: str) -> list[tuple[str, str]]:
        prefix = f"{os.path.realpath(path).rstrip('/')}/"
        rows = [row for row in mounttable.rows() if row.point.startswith(prefix)]
        found = {row.point[len(prefix) :]: row.kind for row in rows}
        return sorted(found.items())[:_MOST_BELOW]

    def tmpfs_size(self, path: str) -> int:
        real = os.path.realpath(path)
        if not any((row.point, row.kind) == (real, "tmpfs") for row in mounttable.rows()):
            return 0
        facts = os.statvfs(real)
        return facts.f_blocks * facts.f_frsize
