"""The plug point of the builder: a recipe names packages and makes a kernel of them. The rest is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bufferzone.guestimage import apt
from bufferzone.record import Record, field


class Kernel(Record):
    """A kernel for PVH boot: the ELF file, its .config, its modules by name, the names of those built in.

    `facts`: what the image's manifest tells of it beside that.
    """

    release: str
    vmlinux: bytes
    config: bytes
    modules: Mapping[str, bytes] = field(default_factory=dict)
    builtin: frozenset[str] = frozenset()
    facts: Mapping[str, object] = field(default_factory=dict)


class Recipe(Protocol):
    """One way to come by a kernel."""

    name: str
    #: the kernel's command line
    arguments: tuple[str, ...]

    def is_ready(self, packages: list[apt.Package], cache: str) -> bool:
        """Whether `kernel` takes seconds and not minutes."""

    def more_inputs(self, packages: list[apt.Package]) -> list[str]:
        """What `kernel` takes beside `packages`, as hashes."""

    def kernel_packages(self) -> list[str]:
        """Concrete names of the packages that `kernel` needs; asks apt's lists, not the network."""

    def kernel(self, packages: list[apt.Package], cache: str, progress: apt.Progress) -> Kernel:
        """Make the kernel from packages that lie in `cache`."""
