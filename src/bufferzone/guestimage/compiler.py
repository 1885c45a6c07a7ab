"""Compiling a kernel: configure, make, strip, with progress and an estimate. Knows no option of it.

The result depends on source, options and compiler alone: times, names and paths are fixed. Source:
Documentation/kbuild/reproducible-builds.rst of the kernel.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import time

from bufferzone.errors import HostError
from bufferzone.guestimage import apt, modules
from bufferzone.guestimage.recipe import Kernel

#: what the kernel writes into itself about who made it
ENVIRONMENT = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "bufferzone",
    "KBUILD_BUILD_HOST": "bufferzone",
    "KBUILD_BUILD_VERSION": "1",
}
#: program or header -> the package that has it: what make needs beside what every Debian has
TOOLS = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/gelf.h": "libelf-dev",
}
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: objects of the kernel in lean_options.py on 6.12, roughly, for the estimate
_OBJECTS = 1700
_EVERY_S = 20.0


def check_tools() -> None:
    """Raises `HostError` (`compiler-missing`) naming every package that is not there."""
    packages = dict.fromkeys(package for tool, package in TOOLS.items() if not _is_there(tool))
    if packages:
        names = " ".join(packages)
        hint = f"run: apt-get install {names}"
        raise HostError(f"compiling a kernel needs {names}", hint=hint, code="compiler-missing")


def _is_there(tool: str) -> bool:
    return os.path.exists(tool) if tool.startswith("/") else shutil.which(tool, path=_PATH) is not None


def compile_kernel(tree: str, options: str, progress: apt.Progress) -> Kernel:
    """The kernel of the source in `tree` with `options` and nothing else; raises `HostError`."""
    with open(os.path.join(tree, "wanted"), "w", encoding="utf-8") as file:
        file.write(options)
    apt.run(_make("allnoconfig"), cwd=tree, env={**_environment(), "KCONFIG_ALLCONFIG": "wanted"})
    started = time.monotonic()
    _follow(apt.lines(_make("vmlinux", f"-j{_jobs()}"), cwd=tree, env=_environment()), progress)
    progress(f"compiled the kernel in {time.monotonic() - started:.0f} s")
    names = apt.run(["nm", "vmlinux"], cwd=tree, package="binutils").splitlines()
    apt.run(["strip", "--strip-all", "-o", "stripped", "vmlinux"], cwd=tree, package="binutils")
    return Kernel(
        release=_text(tree, "include/config/kernel.release").strip(),
        vmlinux=_bytes(tree, "stripped"),
        config=_bytes(tree, ".config"),
        builtin=frozenset(modules.name_of(line) for line in _text(tree, "modules.builtin").split()),
        facts={"symbols": len(names), "system_calls": _system_calls(names), "compiler": _compiler(tree)},
    )


def _make(*words: str) -> list[str]:
    return ["make", "-s" if words == ("allnoconfig",) else "--no-print-directory", "ARCH=x86_64", *words]


def _jobs() -> int:
    return len(os.sched_getaffinity(0))


def _environment() -> dict[str, str]:
    return {"PATH": _PATH, "LC_ALL": "C.UTF-8", **ENVIRONMENT}


def _follow(lines: apt.Lines, progress: apt.Progress) -> None:
    """Tell now and then how far make is, by the objects it has named."""
    progress(f"compiling the kernel: about {_OBJECTS} files, minutes on two CPUs")
    started = told = time.monotonic()
    done = 0
    for line in lines:
        done += line.lstrip().startswith(("CC ", "AS "))
        now = time.monotonic()
        if now - told >= _EVERY_S and done:
            left = f", {max(0, _OBJECTS - done) * (now - started) / done:.0f} s left"
            few = done * 50 < _OBJECTS  # make's own preparation is most of the time until then
            progress(f"compiling the kernel: {done} of about {_OBJECTS} files{'' if few else left}")
            told = now


def _system_calls(names: list[str]) -> int:
    """How many system calls are compiled in: each has one entry of this name."""
    entries = {line.split()[-1] for line in names}
    return sum(name.startswith("__x64_sys_") and name != "__x64_sys_ni_syscall" for name in entries)


def _compiler(tree: str) -> str:
    return apt.run(["gcc", "--version"], cwd=tree, package="gcc").partition("\n")[0]


def _text(tree: str, name: str) -> str:
    return _bytes(tree, name).decode("utf-8", "replace")


def _bytes(tree: str, name: str) -> bytes:
    with open(posixpath.join(tree, name), "rb") as file:
        return file.read()
