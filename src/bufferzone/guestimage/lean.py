"""Recipe `lean`: a kernel with options of our own, compiled from the distribution's source package.

A compiled kernel lies in the cache under a key over its source and its options (lean_options.py), so it is
compiled once, and an image with a new agent is made of it in seconds. Compiling takes minutes and is asked
for by name (`bz setup --guest lean`): no start of a container does it, since `is_ready` says that it would.
A Debian package of ours may bring one that another machine has compiled (`scripts/package --kernel`): it
counts before any source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from bufferzone.errors import HostError
from bufferzone.guestimage import apt, compiler, lean_options, lean_source
from bufferzone.guestimage.arguments import LEAN_ARGUMENTS
from bufferzone.guestimage.recipe import Kernel

#: the kernel that has the options' names; Debian 12 has it beside its own 6.1, in its security archive
SOURCE = "linux-source-6.12"
_NAMED = re.compile(r"linux-source-\d+\.\d+")
#: raise it when compiling changes in a way that source and options do not show
_VERSION = 1
_CACHED = re.compile(r"lean-[0-9a-f]{64}")
_FACTS, _VMLINUX, _CONFIG = "kernel.json", "vmlinux", "config"
#: where a package brings compiled kernels, each below `options_key`
PACKAGED = "/usr/share/bufferzone-kernels"


class Lean:
    """Our own kernel: no modules, nothing in it that a container does not use."""

    name = "lean"
    arguments = LEAN_ARGUMENTS

    def more_inputs(self, packages: list[apt.Package]) -> list[str]:
        packaged = None if _sources(packages) else _read(_packaged())
        return [hashlib.sha256(packaged.vmlinux).hexdigest()] if packaged else []

    def kernel_packages(self) -> list[str]:
        if _read(_packaged()) is not None:
            return []
        try:
            apt.resolve([SOURCE])
        except HostError as error:
            if error.code != "package-unknown":
                raise
            hint = "add the security archive of your release to apt's sources, then run: apt-get update"
            raise HostError(
                f"apt offers no {SOURCE}, which the lean guest is made of", hint=hint, code="package-unknown"
            ) from error
        return [SOURCE]

    def is_ready(self, packages: list[apt.Package], cache: str) -> bool:
        """Whether the kernel of these packages is compiled already."""
        places = [_packaged(), *(_place(cache, each) for each in _sources(packages))]
        return any(os.path.exists(os.path.join(place, _FACTS)) for place in places)

    def kernel(self, packages: list[apt.Package], cache: str, progress: apt.Progress) -> Kernel:
        sources = _sources(packages)
        place = _place(cache, sources[0]) if sources else _packaged()
        found = _read(place)
        if found is None and sources:
            compiler.check_tools()
            _compile(sources[0], cache, place, progress)
            found = _read(place)
        if found is None:
            raise HostError(
                f"the compiled kernel is damaged: {place}",
                hint="reinstall its package, or run: bz setup --guest lean --upgrade",
                code="kernel-format",
            )
        return found


def options_key() -> str:
    """The name of a compiled kernel whatever its source: SHA-256 over options and how they are compiled."""
    inputs = [_VERSION, lean_options.fragment(), compiler.ENVIRONMENT]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def compiled(cache: str, packages: list[apt.Package]) -> tuple[str, dict[str, bytes]]:
    """For a package that carries it: version of its source, and the files of the kernel compiled here, by
    their path below `PACKAGED`. Raises `HostError` where there is none.
    """
    for source in _sources(packages):
        place = _place(cache, source)
        if _read(place) is not None:
            files = {}
            for name in (_FACTS, _VMLINUX, _CONFIG):
                with open(os.path.join(place, name), "rb") as file:
                    files[f"{options_key()}/{name}"] = file.read()
            return source.version, files
    raise HostError("no lean kernel was compiled here", hint="run: bz setup --guest lean")


def _packaged() -> str:
    return os.path.join(PACKAGED, options_key())


def key(source: apt.Package) -> str:
    """The name of a compiled kernel: SHA-256 over source, options and how they are compiled."""
    inputs = [_VERSION, source.sha256, lean_options.fragment(), compiler.ENVIRONMENT]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _place(cache: str, source: apt.Package) -> str:
    return os.path.join(cache, f"lean-{key(source)}")


def _sources(packages: list[apt.Package]) -> list[apt.Package]:
    return [package for package in packages if _NAMED.fullmatch(package.name)]


def _read(place: str) -> Kernel | None:
    """The kernel that lies in `place`, its files compared with their hashes; None where there is none."""
    try:
        with open(os.path.join(place, _FACTS), encoding="utf-8") as file:
            facts = json.load(file)
        files = {}
        for name in (_VMLINUX, _CONFIG):
            with open(os.path.join(place, name), "rb") as content:
                files[name] = content.read()
            if hashlib.sha256(files[name]).hexdigest() != facts["sha256"][name]:
                return None
        return Kernel(
            release=facts["release"],
            vmlinux=files[_VMLINUX],
            config=files[_CONFIG],
            builtin=frozenset(facts["builtin"]),
            facts=facts["facts"],
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # not compiled, or not to the end


def _compile(source: apt.Package, cache: str, place: str, progress: apt.Progress) -> None:
    """Unpack, configure, compile, and keep the result; other kernels of ours in the cache go then."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="partial-", dir=cache) as directory:
        tree = os.path.join(directory, "linux")
        progress(f"unpacking {source.name} {source.version}")
        lean_source.unpack(source, cache, tree)
        made = compiler.compile_kernel(tree, lean_options.fragment(), progress)
        if lost := lean_options.lost(made.config.decode()):
            raise HostError(
                f"{source.name} does not take these options: {' '.join(lost)}", code="kernel-option-lost"
            )
        _keep(made, place, os.path.join(directory, "made"))
    for name in os.listdir(cache):
        if _CACHED.fullmatch(name) and name != os.path.basename(place):
            shutil.rmtree(os.path.join(cache, name), ignore_errors=True)


def _keep(made: Kernel, place: str, aside: str) -> None:
    """Write the kernel aside, then move it into its place."""
    os.mkdir(aside)
    files = {_VMLINUX: made.vmlinux, _CONFIG: made.config}
    facts = {
        "release": made.release,
        "builtin": sorted(made.builtin),
        "facts": dict(made.facts),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[_FACTS] = json.dumps(facts, indent=1, sort_keys=True).encode()
    for name, data in files.items():
        with open(os.path.join(aside, name), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    if os.path.lexists(place):  # damaged
        os.rename(place, f"{aside}-replaced")
    os.rename(aside, place)
