"""Kernel modules for the guest: which files, in which order. Runs no depmod: reads `.modinfo`."""

from __future__ import annotations

import lzma
import posixpath
from collections.abc import Iterator, Mapping

from bufferzone.errors import HostError
from bufferzone.guestimage.elf import Elf

_SIGNATURE_MARK = b"~Module signature appended~\n"
_XZ = b"\xfd7zXZ\0"


def name_of(path: str) -> str:
    """The module's name as the kernel says it: the file name without suffix, with underscores."""
    return posixpath.basename(path).split(".", 1)[0].replace("-", "_")


def is_module(path: str) -> bool:
    """Whether a file of a kernel package is a module, plain or packed."""
    return path.endswith((".ko", ".ko.xz"))


class Modules(Mapping[str, bytes]):
    """A kernel's modules by name, from the files as they are packaged; one is unpacked when it is asked for.

    So the few that a guest gets cost their own unpacking, and not the 1,500 others theirs.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._plain: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._plain:
            self._plain[name] = unsigned(_unpacked(self._files[name]))
        return self._plain[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(_XZ):
        return data
    try:
        return lzma.decompress(data)
    except (lzma.LZMAError, EOFError) as error:
        raise HostError(f"a kernel module cannot be unpacked: {error}", code="kernel-format") from error


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


def load_order(wanted: tuple[str, ...], available: Mapping[str, bytes], builtin: frozenset[str]) -> list[str]:
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
