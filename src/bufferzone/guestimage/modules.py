"""Kernel modules for the guest: which files, in which order. Runs no depmod: reads `.modinfo`."""

from __future__ import annotations

import posixpath

from bufferzone.errors import HostError
from bufferzone.guestimage.elf import Elf

_SIGNATURE_MARK = b"~Module signature appended~\n"


def name_of(path: str) -> str:
    """The module's name as the kernel says it: the file name without suffix, with underscores."""
    return posixpath.basename(path).split(".", 1)[0].replace("-", "_")


def depends(data: bytes) -> list[str]:
    """The modules that must be there before this one; raises `HostError` when `data` is no module."""
    return [
        name.replace("-", "_") for value in _information(data, "depends") for name in value.split(",") if name
    ]


def aliases(data: bytes) -> list[str]:
    """Other names by which the kernel asks for this module, such as fs-overlay; patterns are left out."""
    return [alias for alias in _information(data, "alias") if not set(alias) & set("*?[ \n")]


def _information(data: bytes, wanted: str) -> list[str]:
    try:
        info = Elf(data).section(".modinfo")
    except ValueError as error:
        raise HostError(f"a kernel module is unreadable: {error}", code="kernel-format") from error
    pairs = [item.decode("latin-1").partition("=") for item in info.split(b"\0")]
    return [value for key, _, value in pairs if key == wanted]


def unsigned(data: bytes) -> bytes:
    """The module without its appended signature (Documentation/admin-guide/module-signing.rst).

    The guest's kernel would spend milliseconds of RSA on each; the image's own hashes already say what is
    in it.
    """
    if not data.endswith(_SIGNATURE_MARK):
        return data
    size = int.from_bytes(data[-len(_SIGNATURE_MARK) - 4 : -len(_SIGNATURE_MARK)], "big")
    return data[: -len(_SIGNATURE_MARK) - 12 - size]


def load_order(wanted: tuple[str, ...], available: dict[str, bytes], builtin: frozenset[str]) -> list[str]:
    """Names of `wanted` and all they depend on, each after what it needs; built-in ones left out.

    Raises `HostError` (`kernel-module-missing`) naming a module that is neither a file nor built in.
    """
    ordered: list[str] = []
    seen = set(builtin)

    def visit(name: str, needed_by: str) -> None:
        if name in seen:
            return
        seen.add(name)
        if name not in available:
            suffix = f" (needed by {needed_by})" if needed_by else ""
            raise HostError(f"the kernel has no module {name}{suffix}", code="kernel-module-missing")
        for other in depends(available[name]):
            visit(other, name)
        ordered.append(name)

    for name in wanted:
        visit(name, "")
    return ordered
