"""What a bundle asks of the settings: `bufferzone.*` annotations and the standard `vm` section.

An annotation may only touch a setting whose row names it; rows that are not open need `allow_annotations` in
a settings file, as Kata's enable_annotations. Source of the vm section: runtime-spec config-vm.md.
"""

from __future__ import annotations

import os

from bufferzone import config, egress
from bufferzone.errors import SpecError
from bufferzone.setting import PREFIX, Setting, fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SIZES = {"": 1, "m": 1, "mb": 1, "mib": 1, "g": 1024, "gb": 1024, "gib": 1024, "t": 1 << 20, "tib": 1 << 20}


def parse_annotation(row: Setting, text: str) -> Any:
    """An annotation's text as the row's value; raises `SpecError` naming the annotation."""
    where = f"config.json: annotations.{row.annotation}"
    value: Any = text
    if row.annotation == PREFIX + "memory":
        number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
        unit = _SIZES.get(text.strip()[len(number) :].strip().lower())
        if not number.isascii() or not number.isdigit() or len(number) > 12 or unit is None:
            raise SpecError(
                f"{where}: expected a size like 512 or 1GiB, got {text!r}", hint="numbers are MiB"
            )
        value = int(number) * unit
        if not row.minimum <= value <= row.maximum:
            limits = f"{row.minimum} MiB to {row.maximum} MiB"
            raise SpecError(f"{where}: memory must be {limits}, got {text!r}")
        return value
    if row.kind == "int":
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise SpecError(f"{where}: expected a whole number, got {text!r}")
        value = int(text)
    elif row.kind == "bool":
        if text not in ("true", "false"):
            raise SpecError(f"{where}: expected true or false, got {text!r}")
        value = text == "true"
    elif row.key == "egress":
        value = text.replace(",", " ").split()
        if not value:
            raise SpecError(
                f"{where}: empty", hint=f"{egress.NONE} allows nothing; leave it out to add nothing"
            )
    elif row.kind == "list":
        value = text.split()
    reason = fault(row, value)
    if reason:
        raise SpecError(f"{where}: {reason}")
    return value


def parse_annotations(annotations: Mapping[str, str]) -> dict[str, Any]:
    """The settings that `bufferzone.*` annotations ask for, checked one by one but not yet allowed.

    Raises `SpecError` for an unknown one, with the known ones as a hint. Other annotations are ignored.
    """
    by_name = {row.annotation: row for row in config.TABLE if row.annotation}
    found = {}
    for name, text in annotations.items():
        if not name.startswith(PREFIX):
            continue
        if name not in by_name:
            hint = "known: " + ", ".join(by_name)
            raise SpecError(
                f"config.json: annotations.{name}: unknown annotation", hint=hint, code="unknown-annotation"
            )
        row = by_name[name]
        found[row.key] = parse_annotation(row, text)
    return found


def apply_annotations(settings: config.Settings, annotations: Mapping[str, str]) -> config.Settings:
    """The settings of one container: `annotations` over `settings`.

    Raises `SpecError` for an unknown or malformed annotation, one that this host does not allow, or a weaker
    `kvm` or `egress` policy than the host's.
    """
    wanted = parse_annotations(annotations)
    for key in wanted:
        row = config.ROWS[key]
        _check_allowed(settings, row, f"annotations.{row.annotation}")
    return _narrow(settings, wanted)


def _check_allowed(settings: config.Settings, row: Setting, where: str) -> None:
    if not row.open and not _is_listed(settings, row):
        raise SpecError(
            f"config.json: {where}: not allowed on this host", hint=_listing(row), code="annotation-refused"
        )


def _is_listed(settings: config.Settings, row: Setting) -> bool:
    return not {row.annotation, row.annotation.removeprefix(PREFIX)}.isdisjoint(settings.allow_annotations)


def _listing(row: Setting) -> str:
    name = row.annotation.removeprefix(PREFIX)
    return f'allow_annotations = ["{name}"] in {config.DIRECTORY}/config.toml'


def _narrow(settings: config.Settings, wanted: Mapping[str, Any]) -> config.Settings:
    _check_bounds(settings, wanted)
    result = settings.with_values(**wanted)
    if settings.kvm == result.kvm == "require" and result.accelerator == "tcg":
        raise SpecError(
            "config.json: annotations.bufferzone.accelerator: tcg is refused where kvm is required",
            code="annotation-refused",
        )
    for key, value in wanted.items():
        row = config.ROWS[key]
        host = getattr(settings, row.name)
        reason = row.weaker(host, value) if row.weaker else ""
        if reason and not (row.by_request and _is_listed(settings, row)):
            has = f"this host has: {' '.join(host)}" if isinstance(host, list) else ""
            raise SpecError(
                f"config.json: annotations.{row.annotation}: {reason}",
                hint=_listing(row) if row.by_request else has,
                code="annotation-refused",
            )
    return result


def _check_bounds(settings: config.Settings, wanted: Mapping[str, Any]) -> None:
    """No annotation, since it may be an image's, makes a VM larger than the operator wants to give away."""
    _check_fits(wanted, "annotations")
    cpus, memory = _machine()
    rows = (
        ("vcpus", "annotation_vcpus", settings.annotation_vcpus or cpus, settings.vcpus),
        (
            "memory_mib",
            "annotation_memory_mib",
            settings.annotation_memory_mib or memory // 2,
            settings.memory_mib,
        ),
    )
    for key, bound, most, usual in rows:
        if wanted.get(key, 0) > max(most, usual):
            where = f"config.json: annotations.{config.ROWS[key].annotation}"
            raise SpecError(
                f"{where}: at most {most} by annotation, asked for {wanted[key]}",
                hint=f"{bound} in {config.DIRECTORY}/config.toml",
                code="annotation-refused",
            )


def _machine() -> tuple[int, int]:
    """(CPUs, memory in MiB) of this host."""
    return os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def _check_fits(wanted: Mapping[str, Any], where: str) -> None:
    """A bundle cannot ask for more than the machine has; a settings file may."""
    cpus, memory = _machine()
    for key, name, most in (("vcpus", "vcpus", cpus), ("memory_mib", "memory", memory)):
        if wanted.get(key, 0) > most:
            raise SpecError(f"config.json: {where}: {name}: this host has {most}, asked for {wanted[key]}")


def apply_vm(settings: config.Settings, vm: Mapping[str, Any]) -> config.Settings:
    """The settings with the spec's standard `vm` section (already shape-checked) over them.

    hwConfig.vcpus and hwConfig.memory (bytes) are honoured; kernel and image need `allow_annotations`.
    """
    wanted: dict[str, Any] = {}
    hardware = vm.get("hwConfig", {})
    if "vcpus" in hardware:
        wanted["vcpus"] = hardware["vcpus"]
    if "memory" in hardware:
        wanted["memory_mib"] = hardware["memory"] >> 20
    kernel: Mapping[str, Any] = vm.get("kernel", {})
    for key, name in (("kernel", "path"), ("initrd", "initrd"), ("kernel_arguments", "parameters")):
        if kernel.get(name):
            _check_allowed(settings, config.ROWS[key], f"vm.kernel.{name}")
            wanted[key] = kernel[name]
    if vm.get("image", {}).get("path"):
        _check_allowed(settings, config.ROWS["image"], "vm.image.path")
        wanted["image"] = vm["image"]["path"]
    _check_fits(wanted, "vm")
    for key, value in wanted.items():
        reason = fault(config.ROWS[key], value)
        if reason:
            raise SpecError(f"config.json: vm: {key}: {reason}")
    return settings.with_values(**wanted)
