"""A container as the host keeps it: what it is, and how all that it holds is given back."""

from __future__ import annotations

import os
import time

from bufferzone.oci.host import network_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack
    from typing import Any

    from bufferzone.linux import libseccomp
    from bufferzone.sandbox.copies import Copies
    from bufferzone.vm.group import Group


class Container:
    """What the host holds for one container; `undo` gives all of it back.

    `pid` is the host's process that stands for it. `joined`: the container in whose VM it is, as long as that
    was the first there; empty for the first. `pod`
    is what containerd or CRI-O says of its pod, see `Spec.pod`. `adopted`: from a checkpoint, so it ran
    before, and is frozen until it is started. `namespace` is a descriptor of its network namespace, -1: none
    to attach. `cgroup` is that of the host's process.
    """

    def __init__(
        self,
        container_id: str,
        bundle: str,
        pid: int,
        *,
        spec: dict[str, Any],
        pod: dict[str, str],
        seccomp: libseccomp.Filter,
        hooks: dict[str, Any],
        copies: Copies,
        joined: str,
        adopted: bool,
        namespace: int,
        cgroup: Group,
        undo: ExitStack,
    ) -> None:
        self.id, self.bundle, self.pid = container_id, bundle, pid
        self.spec, self.pod, self.seccomp, self.hooks = spec, pod, seccomp, hooks
        self.copies, self.joined, self.adopted = copies, joined, adopted
        self.namespace, self.cgroup, self.undo = namespace, cgroup, undo
        self.created_ns = time.time_ns()

    @property
    def namespace_path(self) -> str:
        """Where its network namespace can be found from outside."""
        entry = network_namespace(self.spec)
        return (entry[1] if entry else "") or f"/proc/{self.pid}/ns/net"

    @property
    def rootfs(self) -> str:
        """The root file system's host path."""
        path = str(self.spec["root"]["path"])
        return path if path.startswith("/") else os.path.join(self.bundle, path)

    def place_of(self, stage: str) -> str:
        """The directory in which hooks of this stage begin, as with runc: the bundle, but createContainer in
        the root file system, which is what it is for.
        """
        return self.rootfs if stage == "createContainer" else self.bundle
