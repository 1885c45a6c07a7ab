"""Does this VM fit: `vm.fit`, and that every setting and every field of a VM's shape says what it decides."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bufferzone import config
from bufferzone.config import Settings
from bufferzone.model import ImageRef
from bufferzone.record import fields, replace
from bufferzone.vm import fit, shape
from bufferzone.vm.shape import VmShape
from bufferzone.vm.size import VmSize

IMAGE = ImageRef(digest="d" * 64, directory="/i", kernel="/i/k", initrd="/i/r")
THERE = VmShape(
    image=IMAGE,
    kernel="/i/k",
    initrd="/i/r",
    kernel_arguments=("quiet",),
    accelerator="tcg",
    vcpus=2,
    memory_mib=512,
    vmm="qemu",
)


def test_every_setting_says_what_it_decides():
    known = {config.VM, config.ORIGIN, config.GATE, config.HOST}
    assert {row.decides for row in config.TABLE} == known
    assert set(config.deciding(*known)) == {config.ROWS[key].name for key in config.ROWS}


def test_what_decides_a_vm_is_what_a_waiting_one_is_looked_up_by():
    wanted = config.shape_of(Settings())
    assert "memory_mib" in wanted
    assert "templates" in wanted
    assert not {"egress", "pool_size", "boot_timeout_s", "allow_annotations"} & set(wanted)


def test_every_field_of_a_shape_says_how_a_saved_vm_agrees_in_it():
    rules = {each.name: each.metadata.get("restored") for each in fields(VmShape)}
    assert set(rules.values()) <= {"", fit.SAME, fit.WITHIN}
    assert {name for name, rule in rules.items() if rule} == {"vmm", "accelerator", "vcpus", "memory_mib"}


@pytest.mark.parametrize(
    ("rule", "there", "agrees"),
    [(fit.SAME, 2, [2]), (fit.ENOUGH, 2, [1, 2]), (fit.WITHIN, 2, [2, 3])],
)
def test_a_rule_says_how_two_values_agree(rule, there, agrees):
    found = [
        wanted
        for wanted in (1, 2, 3)
        if not fit.differences(SimpleNamespace(vcpus=there), SimpleNamespace(vcpus=wanted), {"vcpus": rule})
    ]
    assert found == agrees


def test_choices_are_compared_by_their_place():
    def unlike(there: str, wanted: str) -> bool:
        return bool(fit.differences(Settings(kvm=there), Settings(kvm=wanted), {"kvm": fit.ENOUGH}))

    assert unlike("warn", "require")
    assert not unlike("warn", "allow")
    assert not unlike("require", "require")


def test_a_difference_says_what_there_is_and_what_is_wanted():
    there, wanted = Settings(egress=[], kernel_arguments=["a", "b"]), Settings(egress=["none"])
    said = [str(each) for each in fit.differences(there, wanted, fit.same(("egress", "kernel_arguments")))]
    assert said == ["its egress is not set, wanted is none", "its kernel_arguments is a b, wanted is not set"]


@pytest.mark.parametrize(
    "change",
    [
        {"memory_mib": 1024},
        {"image": replace(IMAGE, digest="e" * 64)},
        {"kernel_arguments": ()},
        {"nic": False},
    ],
)
def test_a_vm_that_waits_differs_from_a_new_one_in_anything(change):
    assert shape.unlike_new(THERE, THERE) == []
    assert [each.name for each in shape.unlike_new(THERE, replace(THERE, **change))] == list(change)


@pytest.mark.parametrize(
    ("size", "names"),
    [((2, 512), []), ((4, 1024), []), ((1, 512), ["vcpus"]), ((2, 256), ["memory_mib"])],
)
def test_a_saved_vm_takes_no_more_than_its_bundle_would_get(tmp_path, size, names):
    settings = Settings(accelerator="tcg")
    found = shape.unlike_here(
        THERE, settings, VmSize(vcpus=size[0], memory_mib=size[1]), str(tmp_path), print
    )
    assert [each.name for each in found] == names


def test_a_saved_vm_goes_on_in_the_vmm_and_the_accelerator_that_it_ran_in(tmp_path):
    size = VmSize(vcpus=2, memory_mib=512)
    here = Settings(vmm="host")
    assert [str(each) for each in shape.unlike_here(THERE, here, size, str(tmp_path), print)] == [
        "its accelerator is tcg, wanted is none",
        "its vmm is qemu, wanted is host",
    ]
