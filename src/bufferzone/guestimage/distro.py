"""Recipe `distro`: the distribution's cloud kernel as it is, with its security support. Compiles nothing."""

from __future__ import annotations

import platform
import re

from bufferzone.errors import HostError
from bufferzone.guestimage import apt, kernel, modules
from bufferzone.guestimage.arguments import ARGUMENTS
from bufferzone.guestimage.recipe import Kernel

META_PACKAGE = "linux-image-cloud-amd64"
_IMAGE = r"linux-image-\d.*"
#: what Debian's kernel package is split into since Linux 7: configuration, kernel, modules
_PARTS = r"linux-(?:base|binary|modules)-\d.*"
#: the kernel and its configuration: below /boot, or without the release in their names beside the modules
_FILE = re.compile(r"(?:/boot/|(?:/usr)?/lib/modules/[^/]+/)(?P<kind>vmlinuz|config)(?:-[^/]+)?")


class Distro:
    """Debian's kernel for virtual machines: smaller than the generic one, virtio as modules."""

    name = "distro"
    arguments = ARGUMENTS

    def is_ready(self, packages: list[apt.Package], cache: str) -> bool:
        return True

    def more_inputs(self, packages: list[apt.Package]) -> list[str]:
        return []

    def kernel_packages(self) -> list[str]:
        try:
            image = apt.one_needed_by(META_PACKAGE, _IMAGE)
        except HostError as error:
            raise _of_this_release(error) from error
        return [image, *apt.needed_by(image, _PARTS)]

    def kernel(self, packages: list[apt.Package], cache: str, progress: apt.Progress) -> Kernel:
        parts = [package for package in packages if re.fullmatch(f"{_IMAGE}|{_PARTS}", package.name)]
        named = next(package for package in parts if re.fullmatch(_IMAGE, package.name))
        progress(f"unpacking kernel {named.name} {named.version}")
        files: dict[str, bytes] = {}
        found: dict[str, bytes] = {}
        for package in parts:
            for member, data in apt.contents(package, cache):
                if match := _FILE.fullmatch(member.name):
                    files[match["kind"]] = data
                elif member.name.endswith("/modules.builtin"):
                    files["builtin"] = data
                elif modules.is_module(member.name):
                    found[modules.name_of(member.name)] = data
        missing = [name for name in ("vmlinuz", "config", "builtin") if name not in files]
        if missing or not found:
            lacking = " and no ".join(missing or ["modules"])
            raise HostError(f"package {named.name} holds no {lacking}", code="kernel-format")
        return Kernel(
            release=named.name.removeprefix("linux-image-"),
            vmlinux=kernel.extract(files["vmlinuz"]),
            config=files["config"],
            modules=modules.Modules(found),
            builtin=frozenset(modules.name_of(line) for line in files["builtin"].decode().split()),
        )


def _of_this_release(error: HostError) -> HostError:
    """Where another distribution has no such package, that is what is wrong, and no update helps."""
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        found = {}
    if error.code != "package-unknown" or found.get("ID") == "debian":
        return error
    return HostError(
        f"no guest image can be built on {found.get('PRETTY_NAME', 'this release')}: "
        f"it has no package {META_PACKAGE}",
        hint="use Debian 12 (bookworm) or Debian 13 (trixie)",
        code="release-unsupported",
    )
