"""Containers that join the VM of another, because they name its network namespace (`--network container:X`),
or were added to its sandbox.

Two VMs cannot share an interface, so the second container runs beside the first: with a root file system,
namespaces and cgroup of its own, and with the VM as it is. What it asks of the VM that this one does not have
is refused. On the host each keeps its state directory and its waiter's cgroup, and either may go first.
"""

from __future__ import annotations

import os
import threading
from functools import partial

from bufferzone import config, log
from bufferzone.errors import CallerError, HostError
from bufferzone.linux import apart
from bufferzone.oci import overrides
from bufferzone.sandbox import limits
from bufferzone.sandbox.netns_owner import NetnsOwner
from bufferzone.vm import fit
from bufferzone.vm.group import Group
from bufferzone.vmm import accelerator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import ExitStack
    from typing import Any

    from bufferzone import oci
    from bufferzone.sandbox.sandbox import Sandbox

_LOGS = ("shim.log", "console.log", "virtiofsd.log")
#: how the VM agrees with what a container asks for beyond the host's settings: there may be more of some
_JOINED = fit.same(config.deciding(config.VM)) | dict.fromkeys(("vcpus", "memory_mib", "kvm"), fit.ENOUGH)


class Pod:
    """The containers of one VM. `directory` is the state directory of the first; empty for containerd's
    sandboxes, which are joined by their own rules. Thread-safe.
    """

    def __init__(self, sandbox: Sandbox, directory: str) -> None:
        self._sandbox = sandbox
        self._root = os.path.dirname(directory)
        self._lock = threading.Lock()
        self._directories: list[str] = []  # state directories of the containers
        self._serial = 0
        self._shared = bool(directory)
        self.netns_owner = NetnsOwner(directory, sandbox)

    def add(self, undo: ExitStack, container_id: str) -> bool:
        """Whether it joins one that is there before; its state directory gets to know of everything."""
        if not self._shared:
            return False
        directory = os.path.join(self._root, container_id)
        with self._lock:
            joined = bool(self._directories)
            if joined:
                for name in _LOGS:
                    with log.passing_over(f"link {name} of the pod", OSError):  # they help a person, no more
                        os.link(os.path.join(self._directories[0], name), os.path.join(directory, name))
                self._sandbox.left.add_directory(directory)
            self._directories.append(directory)
        undo.callback(self._remove, directory)
        return joined

    def in_callers_mounts(self, undo: ExitStack, pid: int) -> Any:
        """A caller of functions in the mount namespace of the process `pid`: what was mounted after the shim
        started is not to be seen in ours, unless the host's mounts are shared. Raises `HostError`.
        """
        try:
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the caller's mount namespace: {error.strerror}", code="share-failed") from error
        undo.callback(os.close, fd)
        return partial(apart.in_mount_namespace, fd)

    def check(self, spec: oci.Spec, *, inside: bool) -> None:
        """Raise `CallerError` when this VM is not what `spec` asks for. `inside`: it asks for this sandbox,
        with whatever settings that has.
        """
        facts = self._sandbox.facts()
        if facts.start == "restored":
            raise self._refusal("it was restored from a checkpoint", inside=inside)
        if self._sandbox.disk is not None:
            reason = "its root file system is on a disk, so nothing can be shared with it"
            raise self._refusal(reason, "create both without bufferzone.rootfs=block", inside=inside)
        resources = spec.linux.get("resources") or {}
        if inside:
            limits.check_update({}, resources, vcpus=self._sandbox.vcpus, memory_mib=self._sandbox.memory_mib)
            return
        self._check_settings(spec)
        self.check_resources({}, resources)

    def _check_settings(self, spec: oci.Spec) -> None:
        here = config.load()
        wanted = overrides.apply_vm(overrides.apply_annotations(here, spec.annotations), spec.vm)
        there = self._settings_met()
        asked = {name: rule for name, rule in _JOINED.items() if getattr(wanted, name) != getattr(here, name)}
        asked |= fit.same(config.deciding(config.GATE))  # a container that asks for nothing has it, too
        if unlike := fit.differences(there, wanted, asked):
            raise self._refusal(str(unlike[0]), "give both containers the same annotations")

    def _settings_met(self) -> config.Settings:
        """The settings of the VM, with what was not decided by them alone as it came out."""
        facts = self._sandbox.facts()
        return self._sandbox.start.settings.with_values(
            vcpus=facts.vcpus,
            memory_mib=facts.memory_mib,
            accelerator=facts.accelerator,
            kvm=accelerator.policy_met(facts.accelerator),
            image=facts.image,
        )

    def check_resources(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Raise `CallerError` for a limit that nobody would hold a joined container to."""
        sandbox = self._sandbox
        try:
            limits.check_update(old, new, vcpus=sandbox.vcpus, memory_mib=sandbox.memory_mib)
        except CallerError as error:
            raise self._refusal(error.message, "set the larger size on that container") from error
        cpu, block = new.get("cpu") or {}, new.get("blockIO") or {}
        if cpu.get("cpus") or cpu.get("mems") or any(block.values()):
            what = "set these limits on that container: on the host they hold for its whole VM"
            raise self._refusal(what)

    def _refusal(self, reason: str, hint: str = "", *, inside: bool = False) -> CallerError:
        how = "" if inside else ", whose network it names"
        text = f"cannot run in the VM of container {self._sandbox.id}{how}: {reason}"
        return CallerError(text, hint=hint, code="vm-shared")

    def share_name(self, container_id: str, *, joined: bool) -> str:
        """What names in the shared tree begin with: never twice the same, since the guest remembers them."""
        if not joined:
            return container_id
        with self._lock:
            self._serial += 1
            return f"{container_id}@{self._serial}"

    def _remove(self, directory: str) -> None:
        with self._lock:
            self._directories.remove(directory)
            self._sandbox.left.drop_directory(directory)
            tree = self._sandbox.tree
            if tree is None or not self._directories or os.path.dirname(tree.path) != directory:
                return
            path = os.path.join(self._directories[0], "share")
            try:
                os.makedirs(path, 0o711, exist_ok=True)
                tree.move(path)
            except (OSError, HostError) as error:
                self._sandbox.log(f"cannot share another directory with the VM: {error}")

    def join_cgroup(self, undo: ExitStack, cgroup: Group, pid: int) -> Group:
        """The process that stands for a joined container gets the cgroup of its own spec, not the VM's;
        `pid` 0: there is none, and so no cgroup.
        """
        if cgroup.name == self._sandbox.cgroup.name:
            cgroup = self._sandbox.cgroup  # the VM is in it, and removes it
            if cgroup and pid:
                cgroup.join(pid)
        elif not pid:
            return Group("")
        elif cgroup:
            cgroup.check(self._sandbox.log)
            undo.callback(cgroup.begin_for_one(pid, self._sandbox.left))
        return cgroup
