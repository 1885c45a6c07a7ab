"""Building the guest image: one key tells whether anything changed; then packages -> kernel + tree -> store.

`ensure_image` is the whole story. The same packages and the same sources give the same digest, on any
machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from typing import Any

from bufferzone.errors import HostError
from bufferzone.guestimage import agent, apt, cpio, python, recipes, rootfs, store
from bufferzone.guestimage.recipe import Kernel, Recipe
from bufferzone.model import ImageRef
from bufferzone.record import asdict

CONFIG, CONTENTS = "config", "contents"


def ensure_image(
    directory: str,
    *,
    guest: str = recipes.STOCK,
    progress: apt.Progress = print,
    upgrade: bool = False,
    package: str = "",
) -> ImageRef:
    """The current image of a guest, built first when there is none or its inputs changed.

    `upgrade` asks apt for today's packages even when everything is there. `package` is the bufferzone
    package whose agent goes in (the running one). Quick and silent when nothing is to do; no network while
    the cache suffices. Raises `HostError` with one line for whatever is missing; the store is then as it
    was, but for cached packages.
    """
    chosen = recipes.of_guest(guest)
    sources = agent.sources(package or agent.package_directory())
    if not upgrade and (found := _current(directory, chosen, sources)):
        return found
    with store.lock(directory, lambda: progress("waiting for another build")):
        if not upgrade and (found := _current(directory, chosen, sources)):
            return found
        packages = _packages(directory, chosen, progress, upgrade)
        if upgrade and (found := _current(directory, chosen, sources, packages)):
            progress("already up to date")
            return found
        return _build(directory, chosen, packages, sources, progress)


def is_ready(directory: str, guest: str) -> bool:
    """Whether an image of this guest takes seconds: nothing is to be compiled."""
    chosen = recipes.of_guest(guest)
    return chosen.is_ready(pinned_packages(_row(directory, chosen)), os.path.join(directory, "cache"))


def was_built(directory: str, guest: str) -> bool:
    """Whether some image of this guest was built in this store."""
    return bool(_row(directory, recipes.of_guest(guest)))


def _row(directory: str, recipe: Recipe) -> dict[str, Any]:
    """What the index says of the image of a recipe; empty where there was none."""
    row: dict[str, Any] = store.read_index(directory).get("recipes", {}).get(recipe.name, {})
    return row


def input_key(recipe: Recipe, packages: list[apt.Package], sources: dict[str, bytes]) -> str:
    """SHA-256 over all that goes into an image: recipe, the builder's own sources, packages, the agent."""
    here = os.path.dirname(os.path.abspath(__file__))
    builder = {name: _read(os.path.join(here, name)) for name in os.listdir(here) if name.endswith(".py")}
    inputs = [recipes.VERSION, recipe.name, agent.hash_of(builder), agent.hash_of(sources)]
    pins = [*_pins(packages), *recipe.more_inputs(packages)]
    return hashlib.sha256(json.dumps([*inputs, *pins]).encode()).hexdigest()


def _current(
    directory: str, recipe: Recipe, sources: dict[str, bytes], packages: list[apt.Package] | None = None
) -> ImageRef | None:
    """The image that the index names for this recipe, if its inputs are these and its files are there."""
    row = _row(directory, recipe)
    pinned = pinned_packages(row) if packages is None else packages
    if not pinned or row.get("key") != input_key(recipe, pinned, sources):
        return None
    try:
        return store.open_image(directory, row.get("digest"))
    except HostError:
        return None  # missing or damaged: build it again


def pinned_packages(row: dict[str, Any]) -> list[apt.Package]:
    """The packages an index row names; empty when it is not readable, so that apt is asked again."""
    try:
        return [apt.Package(**item) for item in row["packages"]]
    except (KeyError, TypeError):
        return []


def _pins(packages: list[apt.Package]) -> list[dict[str, Any]]:
    return [asdict(package) for package in packages]


def _packages(directory: str, chosen: Recipe, progress: apt.Progress, upgrade: bool) -> list[apt.Package]:
    """The packages to build from, all in the cache: the pinned ones if there, else what apt offers today."""
    cache = os.path.join(directory, "cache")
    pinned = pinned_packages(_row(directory, chosen))
    if rootfs.is_complete(pinned) and not upgrade and not apt.missing(pinned, cache):
        return pinned
    progress("asking apt for packages")
    packages = apt.resolve([*chosen.kernel_packages(), *rootfs.packages()])
    with store.translated(cache):
        apt.fetch(packages, cache, progress)
    return packages


def _build(
    directory: str,
    chosen: Recipe,
    packages: list[apt.Package],
    sources: dict[str, bytes],
    progress: apt.Progress,
) -> ImageRef:
    started = time.monotonic()
    cache = os.path.join(directory, "cache")
    with store.translated(directory), store.workshop(directory) as workshop:
        kernel = chosen.kernel(packages, cache, progress)
        progress("compiling the agent and its Python for the guest")
        files = rootfs.python_files(packages, cache)
        entries = cpio.complete(
            [*rootfs.compiled(files, sources, workshop), *rootfs.of_kernel(kernel), *rootfs.skeleton()]
        )
        progress(f"writing {len(entries)} files")
        target = os.path.join(workshop, "image")
        os.mkdir(target)
        manifest = _write_files(target, kernel, entries)
        manifest |= {
            "recipe": chosen.name,
            "arguments": list(chosen.arguments),
            "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in packages],
            "kernel": {"release": kernel.release, **kernel.facts},
            "python": _python_version(packages),
            "agent": agent.hash_of(sources),
        }
        _write(os.path.join(target, store.MANIFEST), json.dumps(manifest, indent=1, sort_keys=True).encode())
        facts = manifest["files"]
        digest = store.digest_of(
            facts[store.KERNEL]["sha256"], facts[store.INITRD]["sha256"], chosen.arguments
        )
        image = _publish(directory, workshop, target, digest)
        _record(directory, chosen, packages, sources, digest)
    size = sum(row["size"] for row in facts.values()) / 1e6
    progress(f"built image {digest[:12]} ({size:.0f} MB) in {time.monotonic() - started:.1f} s")
    return image


def _python_version(packages: list[apt.Package]) -> str:
    interpreter = python.interpreter_among(packages)
    return interpreter.version if interpreter else ""


def _write_files(target: str, kernel: Kernel, entries: list[cpio.Entry]) -> dict[str, Any]:
    """Write all files but the manifest, and return the manifest's part about them."""
    archive = io.BytesIO()
    cpio.write(entries, archive)
    listing = "".join(
        f"{hashlib.sha256(entry.data).hexdigest()} {entry.mode:06o} {len(entry.data)} {entry.path}\n"
        for entry in entries
    )
    files = {
        store.KERNEL: kernel.vmlinux,
        store.INITRD: archive.getvalue(),
        CONFIG: kernel.config,
        CONTENTS: listing.encode(),
    }
    for name, data in files.items():
        _write(os.path.join(target, name), data)
    facts = {n: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for n, data in files.items()}
    loaded = [entry.path for entry in entries if entry.path.endswith(".ko")]
    return {"files": facts, "modules": loaded}


def _publish(directory: str, workshop: str, target: str, digest: str) -> ImageRef:
    """Keep an intact image of the same digest, since a VM may be starting from it; replace a damaged one."""
    try:
        existing = store.open_image(directory, digest)
        store.verify(existing)
        return existing
    except HostError:
        return store.publish(directory, target, digest, workshop)


def _record(
    directory: str, chosen: Recipe, packages: list[apt.Package], sources: dict[str, bytes], digest: str
) -> None:
    index = store.read_index(directory)
    row = {"key": input_key(chosen, packages, sources), "digest": digest, "packages": _pins(packages)}
    index["recipes"] = {**index.get("recipes", {}), chosen.name: row}
    index["current"] = digest
    store.write_index(directory, index)
    store.prune(directory, index)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
