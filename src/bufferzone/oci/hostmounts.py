"""Whether this host can make the file systems that a config.json wants made of host paths.

Asked before anything is started; mounts nothing, and opens nothing. What no look can tell is the kernel's to
say when they are made. Source: mount(2); overlayfs.rst of Linux for what an overlay has to have.
"""

from __future__ import annotations

import os
import re
import stat

from bufferzone.linux import mount as mnt
from bufferzone.oci.check import fail
from bufferzone.oci.mounts import options_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

HINT = "mount it on the host, and share that directory with a bind mount"
_LOWER = re.compile(r"(?:[^:\\]|\\.)+")


def check(entry: Mapping[str, Any], where: str) -> None:
    """Raise `SpecError` for what is at the JSON path `where` if it cannot be made."""
    kind = str(entry["type"])
    if not mnt.is_known(kind):
        raise fail(f"{where}.type", f"unknown file system type, here and in the guest: {kind}", HINT)
    if kind == "overlay":
        _check_overlay([str(option) for option in options_of(entry)], where)
    elif kind.partition(".")[0] == "fuse":
        if not any(str(option).startswith("fd=") for option in options_of(entry)):
            raise fail(f"{where}.type", f"{kind} needs a program that serves it", HINT)
    elif _needs_device(kind):
        _check_device(str(entry.get("source") or ""), kind, f"{where}.source")


def _needs_device(kind: str) -> bool:
    with open("/proc/filesystems", encoding="ascii", errors="replace") as file:
        return f"\t{kind}\n" in file.readlines()


def _check_device(source: str, kind: str, where: str) -> None:
    if not source:
        raise fail(where, f"missing: {kind} needs a block device", HINT)
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        raise fail(where, f"{(error.strerror or 'cannot be read').lower()}: {source}", HINT) from error
    if stat.S_ISREG(mode) and kind == "erofs":
        return  # since Linux 6.12 a file will do
    if not stat.S_ISBLK(mode):
        hint = f"losetup gives a file one; or {HINT}" if stat.S_ISREG(mode) else HINT
        raise fail(where, f"{kind} needs a block device, which this is not: {source}", hint)


def _check_overlay(options: list[str], where: str) -> None:
    """Every directory that it names has to be there; with none below, the kernel takes it for no overlay."""
    given = dict(part.partition("=")[::2] for option in options for part in re.split(r"(?<!\\),", option))
    if not given.get("lowerdir"):
        raise fail(f"{where}.options", "an overlay needs lowerdir=DIRECTORY")
    named = [("lowerdir", path) for path in _LOWER.findall(given["lowerdir"])]
    if len(named) == 1 and "upperdir" not in given:
        raise fail(f"{where}.options", "an overlay without upperdir needs two directories in lowerdir")
    named += [(name, given[name]) for name in ("upperdir", "workdir") if name in given]
    for name, path in named:
        plain = re.sub(r"\\(.)", r"\1", path)
        if not plain.startswith("/"):
            raise fail(f"{where}.options", f"{name}: not an absolute path: {plain}")
        if not os.path.isdir(plain):
            raise fail(f"{where}.options", f"{name}: no such directory: {plain}")
