"""Containers of one sandbox: each create is one readable sequence over an exit stack, each delete its
reverse.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from functools import partial

from bufferzone import config, oci
from bufferzone.errors import HostError
from bufferzone.linux import libseccomp
from bufferzone.oci import cri, overrides
from bufferzone.sandbox import hooks, limits, plan, podfiles, rootdisk, rootmounts, saving, sources, volumes
from bufferzone.sandbox.container import Container
from bufferzone.sandbox.copies import Copies
from bufferzone.sandbox.network import namespace_of
from bufferzone.sandbox.pods import Pod
from bufferzone.vm.size import size_for
from bufferzone.wire import agent, task
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    See = Callable[[Callable[[], Any]], Any]

    from bufferzone.sandbox.sandbox import Sandbox
    from bufferzone.vm.agent_client import Pending
    from bufferzone.vm.group import Group
    from bufferzone.wire.proto import Message
    from bufferzone.wire.task import Mount

#: for an exec that waits until its container is resumed
_PATIENCE_S = 7 * 86400.0
_NO_FILTER = libseccomp.Filter(program=b"", flags=0)


class Containers:
    """Makes, runs and frees the containers of `sandbox`. Thread-safe as far as its callers keep one id to one
    thread.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        state_text: Callable[[Container, str], bytes],
        directory: str = "",
        *,
        pod_files: str = "",
    ) -> None:
        """`directory`: the state directory of the first, for a sandbox that others may join. `pod_files`: a
        directory with what all but the first are given, see `podfiles`."""
        self._pod_files = pod_files
        self._sandbox = sandbox
        self._containerd = not directory
        self._pod = Pod(sandbox, directory)
        self._state_text = state_text
        self._made: dict[str, Container] = {}
        self.agent = sandbox.agent

    def create(
        self,
        container_id: str,
        bundle: str,
        rootfs: list[Mount],
        pid: int,
        followups: Sequence[tuple[str, Message]] = (),
        *,
        foreground: bool = False,
        inside: bool = False,
    ) -> tuple[Container, list[Pending]]:
        """Everything up to (not including) the process: binds, cgroup, hooks, the guest's half.

        `followups` are requests about the process that are sent along; the second value are the answers to
        come, none for one that is adopted. `foreground`: the process `pid` is a verb that goes on after its
        end. `inside`: see `task.INSIDE`. After a failure nothing is left, on the host or in the guest.
        """
        with ExitStack() as failed:
            run_early_hooks = hooks.early(failed, self._run_stage)
            undo = failed.enter_context(ExitStack())
            # whoever does something else does not belong into the container's cgroup
            stands_in = pid if pid != os.getpid() and not foreground else 0
            joined = self._pod.add(undo, container_id)
            see = self._pod.in_callers_mounts(undo, pid) if joined else _here
            spec, decided = self._decide(
                undo, container_id, bundle, rootfs, see, joined=joined, inside=inside
            )
            seccomp = _NO_FILTER if decided.seccomp is None else libseccomp.compile_profile(decided.seccomp)
            namespace = self._own_network(undo, spec.raw, pid, joined=joined)
            if cri.is_pod(spec.pod):
                self._sandbox.network.share_localhost()
            self._sandbox.wait_ready()
            copies = Copies()
            container = Container(
                container_id,
                bundle,
                pid,
                spec=spec.raw,
                pod=spec.pod,
                seccomp=seccomp,
                hooks=hooks.inheriting(decided.hooks, pid),
                copies=copies,
                joined=self._sandbox.id if joined else "",
                adopted=bool(self._sandbox.start.adopts),
                namespace=namespace,
                cgroup=self._join_cgroup(undo, container_id, spec.raw, stands_in, joined=joined),
                undo=undo,
            )
            if not joined:
                self._limit(container, container.spec)
            run_early_hooks(container)
            if not self._sandbox.start.adopts:  # after the hooks: what those mounted comes along
                self._give_files(undo, copies, container_id, decided, rootfs, see)
            pending = self._make(container, decided, followups)
            if namespace >= 0 and not self._pod.netns_owner.is_attached(namespace):
                # most callers have made the network by now, and take their time until they start
                self._sandbox.network.prepare(namespace, container.namespace_path)
            self._made[container_id] = container
            failed.pop_all()
        return container, pending

    def _decide(
        self,
        undo: ExitStack,
        container_id: str,
        bundle: str,
        rootfs: list[Mount],
        see: See,
        *,
        joined: bool,
        inside: bool,
    ) -> tuple[oci.Spec, plan.ContainerPlan]:
        """Read the spec and plan the container; what it names is looked for with `see`."""
        spec: oci.Spec = see(partial(oci.load, bundle, containerd=self._containerd))
        if self._pod_files and container_id != self._sandbox.id:
            spec.raw = podfiles.given(spec.raw, self._pod_files)
        if joined:
            self._pod.check(spec, inside=inside)
        block = self._sandbox.disk is not None
        if not block:
            rootmounts.mount(rootfs, os.path.join(bundle, "rootfs"), undo)
        name = self._pod.share_name(container_id, joined=joined)
        made = partial(
            sources.plan_of,
            spec.raw,
            name,
            bundle,
            block=block,
            other_container=self._container_of,
            ipc_of=self._sandbox.id if inside else "",
        )
        decided: plan.ContainerPlan = see(made)
        return spec, decided

    def _container_of(self, pid: int) -> str:
        """The container that this process of the host stands for, or empty: a waiter's, or with
        containerd a stand-in's.
        """
        return next((found.id for found in list(self._made.values()) if found.pid == pid), "")

    def _own_network(self, undo: ExitStack, spec: dict[str, Any], pid: int, *, joined: bool) -> int:
        """Open the container's network namespace, if it has one to attach, and make it this VM's alone."""
        fd = namespace_of(spec, pid)
        if fd >= 0:
            undo.callback(os.close, fd)
            self._pod.netns_owner.take(fd, joining=joined)
            undo.callback(self._leave_network, fd)
        return fd

    def _leave_network(self, fd: int) -> None:
        if self._pod.netns_owner.drop(fd):
            self._sandbox.network.leave(fd)

    def _join_cgroup(
        self, undo: ExitStack, container_id: str, spec: dict[str, Any], pid: int, *, joined: bool
    ) -> Group:
        """The cgroups of the host: of the VM with its first container, of a waiter alone where it joined.

        `pid` is 0 where nothing stands for the container alone.
        """
        if joined:
            return self._pod.join_cgroup(undo, limits.cgroup_of(spec, container_id), pid)
        if self._sandbox.cgroup and pid:
            self._sandbox.cgroup.join(pid)
        return self._sandbox.cgroup

    def _make(
        self, container: Container, decided: plan.ContainerPlan, followups: Sequence[tuple[str, Message]]
    ) -> list[Pending]:
        """The guest's half: made anew, or taken over from the VM of a checkpoint, frozen still."""
        if container.adopted:
            hostname = str(container.spec.get("hostname") or "")
            adopted = agent.AdoptRequest(
                id=self._sandbox.start.adopts, new_id=container.id, hostname=hostname
            )
            self.agent.call("Adopt", adopted, agent.PidResponse)
            return []
        request = agent.CreateRequest(
            id=container.id,
            spec=decided.guest_spec,
            seccomp=container.seccomp.program,
            seccomp_flags=container.seccomp.flags,
            locks=list(decided.locks),
        )
        if decided.locks:
            self._sandbox.serve_locks()
        return self._call("Create", request, followups)

    def _call(
        self,
        method: str,
        request: Message,
        followups: Sequence[tuple[str, Message]],
        *,
        timeout_s: float = 0,
    ) -> list[Pending]:
        """Make a process, and send `followups` with it; returns what answers them."""
        first, *pending = self.agent.send((method, request), *followups, timeout_s=timeout_s)
        try:
            first.result(agent.PidResponse)
        except BaseException:
            for answer in pending:
                self.agent.forget(answer.stream)
            raise
        return pending

    def checkpoint(
        self, container: Container, directory: str, *, frozen: bool, ended: Callable[[], None] | None
    ) -> None:
        """See `saving.save`."""
        saving.save(self._sandbox, container, directory, frozen=frozen, ended=ended)

    def start(self, container: Container) -> None:
        """Let its process run, on the network that its namespace has by now."""
        self._sandbox.before_a_program()
        netns_owner = self._pod.netns_owner
        if container.namespace >= 0 and not netns_owner.is_attached(container.namespace):
            try:
                self._sandbox.network.attach(container.namespace, container.namespace_path)
            except HostError as error:
                words = f"{container.id}: {error.message}"
                raise HostError(words, hint=error.hint, code=error.code) from error
            if self._sandbox.network.is_joined:
                netns_owner.set_attached(container.namespace)  # another look would disturb who uses it by now
        container.copies.renew(self._give_file)
        method = "Resume" if container.adopted else "Start"
        self.agent.call(method, agent.ProcessRef(id=container.id), Empty)

    def _give_files(
        self,
        undo: ExitStack,
        copies: Copies,
        container_id: str,
        decided: plan.ContainerPlan,
        rootfs: list[Mount],
        see: See,
    ) -> None:
        """Root file system and volumes: shared, or on the disk with copies of single files."""
        disk = self._sandbox.disk
        if disk is not None:
            disk.give_to(container_id)
            rootdisk.take_mounts(disk, rootfs)
            self._sandbox.mount_root(disk)
            copies.give(decided.files, self._give_file, undo)
        if decided.binds:
            ours = 1 if rootfs and disk is None else 0  # what was mounted for it, nobody else sees
            volumes.give(self._sandbox, container_id, decided.binds, see, undo, ours=ours)

    def _give_file(self, request: agent.WriteFileRequest) -> None:
        self.agent.call("WriteFile", request, Empty)

    def exec(
        self,
        ref: agent.ProcessRef,
        process: bytes,
        pid: int,
        followups: Sequence[tuple[str, Message]] = (),
        *,
        wishes: frozenset[str] = frozenset(),
    ) -> list[Pending]:
        """Run one more process in a container, under the container's seccomp filter; `followups` as in
        `create`, and what answers them. `wishes`: see `task.OWN_PROCESS_URL`.
        """
        container = self._made.get(ref.id)
        if container is not None and container.cgroup and pid != os.getpid():
            container.cgroup.join(pid)
        seccomp = _NO_FILTER if container is None else container.seccomp
        request = agent.ProcessRequest(
            id=ref.id,
            exec_id=ref.exec_id,
            process=process,
            seccomp=seccomp.program,
            seccomp_flags=seccomp.flags,
            patient=task.PATIENT in wishes,
            lingering=task.LINGERING in wishes,
            outlived=task.OUTLIVED in wishes,
        )
        return self._call("Exec", request, followups, timeout_s=_PATIENCE_S if request.patient else 0)

    def update(self, container: Container, changes: dict[str, Any]) -> None:
        """Change limits, in the guest and on the host; after an error all are as they were.

        Raises `CallerError` `vm-size` for more than the VM has, `SpecError` or `GuestError` for what the
        kernel does not take.
        """
        old = (container.spec.get("linux") or {}).get("resources") or {}
        changes = limits.given(changes)
        if container.joined:
            self._pod.check_resources(old, changes)
        else:
            limits.check_update(old, changes, vcpus=self._sandbox.vcpus, memory_mib=self._sandbox.memory_mib)
        merged = limits.merge(old, changes)
        changed = {**container.spec, "linux": {**container.spec.get("linux", {}), "resources": merged}}
        take_back = self._limit(container, changed)
        text = json.dumps(limits.for_guest(changes)).encode()
        try:
            self.agent.call("Update", agent.UpdateRequest(id=container.id, resources=text), Empty)
        except BaseException:
            take_back()
            raise
        container.spec = changed

    def _limit(self, container: Container, spec: dict[str, Any]) -> Callable[[], None]:
        """What the host's cgroup holds. Not before the VM is up, whose start is not throttled.

        Memory: that of the VM which these limits alone make. An annotation, which may be an image's, can make
        the VM larger, and leaves the host's limit where the caller's puts it.
        """
        sandbox = self._sandbox
        resources = {} if container.joined else limits.resources_of(spec, container.pod)
        plain = overrides.apply_vm(config.load(), spec.get("vm") or {})
        size = size_for(spec, container.pod, vcpus=plain.vcpus, memory_mib=plain.memory_mib)
        memory_mib = min(sandbox.memory_mib, size.memory_mib)
        before = {} if spec is container.spec else limits.resources_of(container.spec, container.pod)
        return limits.apply(sandbox.cgroup, resources, memory_mib, sandbox.log, before)

    def run_hooks(self, container: Container, name: str, state: bytes) -> None:
        """Run the hooks of one stage. Once the container has started a failing one is a warning in the log;
        before that it raises `HostError`.
        """
        wanted = container.hooks.get(name, ())
        if wanted and self._sandbox.recorder.on:
            paths = [hook.path for hook in wanted]
            self._sandbox.recorder.note("hooks", container.id, stage=name, paths=paths)
        if name in ("poststart", "poststop"):
            hooks.run_all(name, wanted, state, container.bundle, self._sandbox.log)
        else:
            hooks.run_hooks(name, wanted, state, container.place_of(name))

    def _run_stage(self, container: Container, name: str, status: str) -> None:
        self.run_hooks(container, name, self._state_text(container, status))

    def give_up(self, reason: str) -> None:
        """End the VM: its guest does not do what it must."""
        self._sandbox.give_up(reason)

    def stopped(self, alone: bool) -> None:
        """An init is gone; when it was `alone` in its sandbox, the VM is needed no longer."""
        if alone:
            self._pod.netns_owner.close()
        self._sandbox.container_stopped(alone)

    def delete(self, container: Container) -> None:
        """Give back what the host holds for it."""
        self._made.pop(container.id, None)
        container.undo.close()

    def close(self) -> None:
        """The sandbox ends, whatever is in it."""
        self._pod.netns_owner.close()


def _here(work: Callable[[], Any]) -> Any:
    return work()
