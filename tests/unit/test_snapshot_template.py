"""What of a template depends on QEMU and virtiofsd: its name, and whether the share is in it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from bufferzone import vmmstore
from bufferzone.errors import VmmError
from bufferzone.model import ImageRef, Rates
from bufferzone.record import fields, replace
from bufferzone.snapshot import template
from bufferzone.storage import virtiofs
from bufferzone.vm import shape
from bufferzone.vm.shape import VmShape
from bufferzone.vmm.qemu import driver
from bufferzone.wire import agent

RUN = "/run/bufferzone-uids"


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VmShape:
    """A machine on a host with a Rust virtiofsd, TMP/virtiofsd."""
    for name in ("qemu", "kernel", "initrd", "virtiofsd"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(driver, "find_program", lambda: str(tmp_path / "qemu"))
    monkeypatch.setattr(driver, "find_firmware", lambda: ("qboot.rom", ()))
    install(monkeypatch, "rust", tmp_path / "virtiofsd")
    kernel, initrd = str(tmp_path / "kernel"), str(tmp_path / "initrd")
    return VmShape(
        vmm="qemu",
        image=ImageRef(digest="d", directory=str(tmp_path), kernel=kernel, initrd=initrd, arguments=()),
        kernel=kernel,
        initrd=initrd,
        kernel_arguments=(),
        accelerator="tcg",
        vcpus=1,
        memory_mib=256,
    )


def install(monkeypatch: pytest.MonkeyPatch, kind: str, path: Path) -> None:
    program = virtiofs.Program(kind=kind, path=str(path))
    monkeypatch.setattr(shape.virtiofs, "find_program", lambda: program)


def test_another_virtiofsd_is_another_template_where_its_state_may_be_in_it(
    described: VmShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = replace(described, block=True)
    before, before_block = shape.template_key(described), shape.template_key(block)
    (tmp_path / "virtiofsd").write_text("a newer one")
    assert shape.template_key(described) != before
    assert shape.template_key(block) == before_block
    install(monkeypatch, "c", tmp_path / "virtiofsd")
    before = shape.template_key(described)
    (tmp_path / "virtiofsd").write_text("and another")
    assert shape.template_key(described) == before


def test_another_cpu_is_another_template_and_no_place_for_a_checkpoint_where_guests_see_it(
    described: VmShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {}
    for accelerator in ("kvm", "tcg"):
        machine = replace(described, accelerator=accelerator)
        for name in ("this", "other"):
            monkeypatch.setattr(shape, "_cpu", lambda name=name: f"model name: {name}")
            keys[accelerator, name] = shape.template_key(machine), shape.saved_key(machine)
    for this, other in zip(keys["kvm", "this"], keys["kvm", "other"], strict=True):
        assert this != other
    assert keys["tcg", "this"] == keys["tcg", "other"]  # it is emulated, the same everywhere


def test_another_firecracker_is_another_template(
    described: VmShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "firecracker"
    program.write_text("1.12.1")
    monkeypatch.setattr(vmmstore, "find", lambda name: str(program))
    machine = replace(described, vmm="firecracker", accelerator="kvm", block=True)
    before = shape.template_key(machine), shape.saved_key(machine)
    program.write_text("one that is newer")
    after = shape.template_key(machine), shape.saved_key(machine)
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_template_is_for_vms_of_any_limits_and_has_none_itself(described: VmShape, tmp_path: Path) -> None:
    limited = Rates(disk_bytes=1, disk_ops=1, network_bytes=1)
    block = replace(described, block=True, nic=True)
    assert shape.spec_of(block, "clone", nic_fd=6, rates=limited).rates == limited
    assert shape.spec_of(block, "template", nic_fd=6).rates == Rates()
    assert "throttle" not in str(driver.fingerprint(shape.spec_of(block, "template", nic_fd=6)))
    assert "rates" not in {each.name for each in fields(VmShape)}  # of which its name is made


def test_only_a_vm_with_a_share_and_the_rust_virtiofsd_may_carry_it(
    described: VmShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shape.may_carry(described)
    assert not shape.may_carry(replace(described, block=True))
    install(monkeypatch, "c", tmp_path / "virtiofsd")
    assert not shape.may_carry(described)


@pytest.mark.parametrize("kind", ["c", "rust"])
@pytest.mark.parametrize("able", [True, False])
def test_a_share_that_cannot_be_saved_is_left_out(
    kind: str, able: bool, described: VmShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted: list[bool] = []
    told: list[str] = []

    def boot(_machine: VmShape, _directory: str, _run: str, _timeout_s: float, *, carries: bool) -> None:
        booted.append(carries)
        if carries and not able:
            raise VmmError("not migratable")

    install(monkeypatch, kind, tmp_path / "virtiofsd")
    monkeypatch.setattr(template, "_boot_once", boot)
    monkeypatch.setattr(template.share, "own_namespace", lambda: None)
    carries = template._boot_and_save(described, str(tmp_path), RUN, 120, told.append)
    assert carries == (kind == "rust" and able)
    assert booted == ([False] if kind == "c" else [True] if able else [True, False])
    assert len(told) == (1 if kind == "rust" and not able else 0)


@pytest.mark.parametrize("balloon", [True, False])
def test_the_guest_of_a_template_has_the_time_that_the_settings_give_a_boot(
    balloon: bool, tmp_path: Path
) -> None:
    """A slow host sets `boot_timeout_s`: with limits of its own no template was ever made there.

    Without a balloon that holds it, free memory is not overwritten: the guest would touch all of it, and die.
    """
    limits = []

    def call(method: str, request: object, response: object, *, timeout_s: float) -> object:
        limits.append((method, timeout_s))
        return agent.PrepareSnapshotResponse(free=0)

    vmm = SimpleNamespace(
        features=SimpleNamespace(balloon=balloon),
        save=lambda fd: None,
        squeezed=lambda *, memory, free: nullcontext(),
    )
    vm = SimpleNamespace(agent=SimpleNamespace(call=call), vmm=vmm)
    with ExitStack() as stack:
        template._prepare_and_save(vm, 1 << 20, str(tmp_path), 900, stack)
    zeroed = [("ZeroFreeMemory", 900)] if balloon else []
    assert limits == [("Hello", 900), ("PrepareSnapshot", 900), *zeroed]
