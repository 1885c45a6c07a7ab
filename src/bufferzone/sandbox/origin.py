"""Where the VM of a sandbox comes from: a new one, warm where there is a template, or that of a checkpoint.

Both answer the same questions, so that `boot` asks none of its own about them. A third origin, a VM that
waits, is the pool's.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from bufferzone import state
from bufferzone.errors import HostError, VmmError
from bufferzone.guestimage import store, template_store
from bufferzone.log import passing_over
from bufferzone.sandbox import plan, rootdisk, sources, user_network
from bufferzone.sandbox.facts import NO_WALL
from bufferzone.sandbox.sandbox import Start
from bufferzone.snapshot import fits, template
from bufferzone.vm import nic
from bufferzone.vm.shape import describe, template_key
from bufferzone.vm.size import size_for
from bufferzone.vmm import drivers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.config import Settings
    from bufferzone.errors import BufferzoneError
    from bufferzone.network.tcfilter import Tap
    from bufferzone.oci import Spec
    from bufferzone.sandbox.rootdisk import RootDisk
    from bufferzone.snapshot.checkpoint_dir import Checkpoint
    from bufferzone.vm.launch import RunningVm, VmLauncher
    from bufferzone.vm.shape import VmShape


class NewVm:
    """A VM for `spec` as the settings ask for. Raises `CallerError` or `HostError` for what cannot be.

    `shares`: something of the host is shared with its guest; `passt`: its NIC is on a user network.
    """

    def __init__(self, spec: Spec, settings: Settings, log: Callable[[str], None]) -> None:
        settings = rootdisk.choose(settings, spec)
        shared = sources.shared(spec) if settings.rootfs == "block" else (spec.rootfs,)
        self.shares = bool(shared)
        self._features = drivers.find(settings.vmm).FEATURES
        if not self._features.wall:
            log(f"wall: {NO_WALL}")
        self.settings = plan.within_features(settings, self._features, shared=shared, restored=False)
        self.passt = user_network.is_wanted(spec.raw, settings)
        self._spec, self._log = spec, log

    def park(self) -> Tap | None:
        """The tap of its NIC, if it has one."""
        return nic.park(self._log) if self._features.nic and not self.passt else None

    def plan(self, stack: ExitStack, root: str, tap: Tap | None) -> PlannedVm:
        """Decide its shape and look for a template; `root` is where the probe of KVM is kept."""
        size = size_for(
            self._spec.raw, self._spec.pod, vcpus=self.settings.vcpus, memory_mib=self.settings.memory_mib
        )
        shape = describe(self.settings, size, root, self._log, nic=tap is not None, user_network=self.passt)
        return PlannedVm(self._spec, self.settings, shape, Warm(stack, shape, self.settings, self._log))


class PlannedVm:
    """A new VM whose shape is decided."""

    def __init__(self, spec: Spec, settings: Settings, shape: VmShape, warm: Warm) -> None:
        self.shape = shape
        self._spec, self._settings, self._warm = spec, settings, warm

    def open_disk(self, stack: ExitStack, uid: int) -> RootDisk | None:
        """What its root file system is on; None: it is shared."""
        return rootdisk.open_root(stack, self._settings, self._spec, uid=uid)

    def launch(self, stack: ExitStack, launcher: VmLauncher) -> tuple[RunningVm, Start]:
        """Start it; a template that fails is worth one warning."""
        vm = self._restore(stack, launcher)
        kind = "cold" if vm is None else "warm"
        if vm is None and self.shape.image.directory:
            store.verify(self.shape.image)  # a template was made of one that was
        can_be_saved = self.shape.block and drivers.find(self.shape.vmm).FEATURES.snapshot
        vm = vm or launcher.boot(stack, in_file=can_be_saved)
        self._warm.let_go()
        return vm, Start(kind=kind, settings=self._settings, came_up=self._warm.boot_ended)

    def _restore(self, stack: ExitStack, launcher: VmLauncher) -> RunningVm | None:
        if drivers.find(self.shape.vmm).FEATURES.maps_memory:
            self._warm.open_again()
        if self._warm.template is None:
            return None
        try:
            with ExitStack() as attempt:
                vm = launcher.restore(attempt, self._warm.template)
                stack.push(attempt.pop_all())
                return vm
        except (VmmError, HostError) as error:
            self._warm.refused(error)
            return None


class RestoredVm:
    """The VM of a checkpoint, with the container in it; see `NewVm`."""

    passt = False

    def __init__(
        self, checkpoint: Checkpoint, spec: Spec, settings: Settings, log: Callable[[str], None]
    ) -> None:
        if checkpoint.shape.user_network:
            raise HostError("a checkpoint of a VM behind passt cannot be restored", code="passt")
        shared = sources.shared(spec)
        self.shares = bool(shared)
        features = drivers.find(settings.vmm).FEATURES
        settings = rootdisk.choose(settings, spec)
        self.settings = plan.within_features(settings, features, shared=shared, restored=True)
        self._checkpoint, self._spec, self._log = checkpoint, spec, log

    def park(self) -> Tap | None:
        """The tap of its NIC, if it has one."""
        return nic.park(self._log) if self._checkpoint.shape.nic else None

    def plan(self, stack: ExitStack, root: str, tap: Tap | None) -> PlannedRestoredVm:
        """Find out whether it can be had here; raises `HostError`."""
        shape = fits.shape_of(
            self._checkpoint,
            self.settings,
            self._spec,
            root,
            self._log,
            has_tap=tap is not None,
            has_volumes=self.shares,
        )
        return PlannedRestoredVm(self._checkpoint, shape, self.settings)


class PlannedRestoredVm:
    """A checkpoint's VM that can be had here."""

    def __init__(self, checkpoint: Checkpoint, shape: VmShape, settings: Settings) -> None:
        self.shape = shape
        self._checkpoint, self._settings = checkpoint, settings

    def open_disk(self, stack: ExitStack, uid: int) -> RootDisk | None:
        """What its root file system is on."""
        return rootdisk.open_saved(stack, self._checkpoint)

    def launch(self, stack: ExitStack, launcher: VmLauncher) -> tuple[RunningVm, Start]:
        """Let it run on."""
        vm = launcher.restore(stack, self._checkpoint)
        return vm, Start(kind="restored", settings=self._settings, adopts=self._checkpoint.container)


class Warm:
    """The template of this shape, if there is one; else who makes it once this boot is done."""

    def __init__(
        self, stack: ExitStack, shape: VmShape, settings: Settings, log: Callable[[str], None]
    ) -> None:
        self.template: template_store.Template | None = None
        self._maker: template.Maker | None = None
        self._came_from = self._blamed = ""
        self._log = log
        self._store = template_store.default_store(settings.image_store)
        if not settings.templates or os.geteuid() != 0:
            return
        key = template_key(shape)
        try:
            self.template = template_store.open_template(self._store, key)
        except HostError as error:
            log(error.line())
            template_store.remove(self._store, key)
        if self.template is not None:
            stack.callback(self.let_go)
        else:
            # started now, so that it is in the caller's cgroup and namespaces and not in the container's
            try:
                self._maker = template.Maker(shape, self._store, state.lease_root(), settings.boot_timeout_s)
            except OSError as error:
                log(f"no template will be made: {error.strerror}: {error.filename or self._store}")
            else:
                stack.callback(self._maker.cancel)

    def open_again(self) -> None:
        """The descriptors become those of the mount namespace that we are in by now: no other's can be shown
        in a jail (open_tree(2): EINVAL)."""
        if self.template is None:
            return
        key = self.template.key
        self.template.close()
        self.template = None
        with passing_over(f"the template {key} was replaced just now", HostError):
            self.template = template_store.open_template(self._store, key)

    def refused(self, error: BufferzoneError) -> None:
        """The template does not work: one warning. It is to blame where a cold boot works."""
        self._log(f"booting cold, the template is of no use: {error.line()}")
        if self.template is not None:
            self._blamed = self.template.key
            self.template.close()
            self.template = None

    def let_go(self) -> None:
        """The template was copied: one that is removed now gives its space back."""
        if self.template is not None:
            self._came_from = self.template.key
            self.template.close()
            self.template = None

    def boot_ended(self, well: bool | None) -> None:
        """Let the maker begin. A template that was refused where a cold boot works, and one whose guest did
        not wake, is removed: it is made anew after the next cold boot. None: a kill, or the host, ended it,
        which says nothing of the template.
        """
        if well and self._maker is not None:
            self._maker.go()
        if well and self._blamed:
            template_store.remove(self._store, self._blamed)
        if well is False and self._came_from:
            self._log("the template is removed: its guest did not wake")
            template_store.remove(self._store, self._came_from)
