"""`bz setup`: build the guest image, or find that it is there; or take in the program of a VMM."""

from __future__ import annotations

import time

from bufferzone import config, vmmstore
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("guest", "NAME", "stock, the distribution's, or lean, our own; not set: as the settings say"),
    Flag("upgrade", "", "take today's packages even if nothing is missing"),
    Flag("vmm", "NAME", "take in the program PATH of a VMM that no distribution has: firecracker"),
)
USAGE = "[options] | --vmm NAME PATH"
DESCRIPTION = (
    "Takes the distribution's kernel, or its source, and Python through apt; the store keeps the result "
    "by its digest."
)
WORDS = (0, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Build it, telling each step."""
    if bool(options.vmm) != bool(words):
        raise UsageError("a VMM is taken in by name and path: bz setup --vmm firecracker PATH")
    if options.vmm:
        return _take(options.vmm, words[0])
    from bufferzone.guestimage import current
    from bufferzone.guestimage.build import ensure_image

    settings = config.load()
    start, store, guest = time.monotonic(), settings.image_store, options.guest or settings.guest
    if guest == current.AUTO:
        guest = current.built_guest(store)
    image = ensure_image(
        store,
        guest=guest,
        progress=lambda line: output.print_text(f"{time.monotonic() - start:6.1f} s  {line}\n"),
        upgrade=options.upgrade,
    )
    current.remember_own(store, image.digest, guest)  # for users, who may not build in this store
    output.print_text(f"guest image: {image.directory}\n")
    if settings.guest not in (guest, current.AUTO):
        output.print_text(f'it is used where the settings say: guest = "{guest}"\n')
    elif options.guest and current.current_image(store, output.print_text, settings.guest) != image:
        output.print_text(f'the lean one is used; this one where the settings say: guest = "{guest}"\n')
    return 0


def _take(name: str, path: str) -> int:
    """Check a VMM's program and keep it."""
    place, version = vmmstore.take(name, path)
    output.print_text(f"{vmmstore.KNOWN[name].label} {version}: {place}\n")
    if config.load().vmm != name:
        output.print_text(f'it is used where the settings say: vmm = "{name}"\n')
    return 0
