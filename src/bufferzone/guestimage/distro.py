"""Recipe `distro`: the distribution's cloud kernel as it is, with its security support. Compiles nothing."""

from __future__ import annotations

import re

from bufferzone.errors import HostError
from bufferzone.guestimage import apt, kernel, modules
from bufferzone.guestimage.recipes import Kernel

META_PACKAGE = "linux-image-cloud-amd64"


class Distro:
    """Debian's kernel for virtual machines: smaller than the generic one, virtio as modules."""

    name = "distro"

    def kernel_packages(self) -> list[str]:
        return [apt.concrete_kernel(META_PACKAGE)]

    def kernel(self, packages: list[apt.Package], cache: str, progress: apt.Progress) -> Kernel:
        package = next(p for p in packages if re.match(r"linux-image-\d", p.name))
        progress(f"unpacking kernel {package.name} {package.version}")
        release, image, config, builtin = "", b"", b"", b""
        found: dict[str, bytes] = {}
        for member, data in apt.contents(package, cache):
            if member.name.startswith("/boot/vmlinuz-"):
                release, image = member.name.removeprefix("/boot/vmlinuz-"), data
            elif member.name.startswith("/boot/config-"):
                config = data
            elif member.name.endswith("/modules.builtin"):
                builtin = data
            elif member.name.endswith(".ko"):
                found[modules.name_of(member.name)] = modules.unsigned(data)
        if not image or not found:
            raise HostError(f"package {package.name} holds no kernel", code="kernel-format")
        names = frozenset(modules.name_of(line) for line in builtin.decode().split())
        return Kernel(
            release=release, vmlinux=kernel.extract(image), config=config, modules=found, builtin=names
        )
