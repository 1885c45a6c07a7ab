"""The image for the running package, built first when the agent or the recipe changed. Cheap when nothing
did.

Every start asks this, so it looks at names, sizes and times of our own files (a few hundred microseconds);
only when those are new does it import the builder, which decides by content. Each installed version or
checkout is remembered on its own: two that share a store do not take the image from each other.
"""

from __future__ import annotations

import os

from bufferzone import log
from bufferzone.digest import sha256
from bufferzone.errors import HostError
from bufferzone.guestimage import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.model import ImageRef

#: what goes into an image or decides how it is made, below the package
_PARTS = ("", "container", "guest", "guestimage", "linux", "wire")
_REMEMBERED = 16
#: the lean guest where it has been built, else the stock one
AUTO = "auto"
_LEAN, _STOCK = "lean", "stock"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def current_image(directory: str, progress: Callable[[str], None], guest: str = AUTO) -> ImageRef:
    """The image of `guest` that belongs to the running package; builds it, with `progress`, when its inputs
    changed.

    Raises `HostError` when there is no image at all or a damaged one, or a kernel is to be compiled first
    (that is for `bz setup` to say and repair), and when it cannot be built.
    """
    # that a stock image is known does not say that no lean one can be had: somebody may have asked for it
    wanted = (_LEAN, AUTO) if guest == AUTO else (guest,)
    package = fingerprint(_PACKAGE)
    # root's own store is both: it is read once
    places = dict.fromkeys((directory, *_places_of_root(directory)))
    known = [(place, dict(store.packages_of(store.read_index(place)))) for place in places]
    for mark in (_mark(package, one) for one in wanted):
        for place, digests in known:
            if mark in digests:
                return store.open_image(place, digests[mark])
    store.open_image(directory)
    from bufferzone.guestimage import build

    asked = guest
    if guest == AUTO:
        guest = built_guest(directory)
    elif not build.is_ready(directory, guest):
        hint = f"run: bz setup --guest {guest}"
        raise HostError(
            f"no {guest} guest in {directory} for this version", hint=hint, code="guest-not-built"
        )
    image = build.ensure_image(directory, guest=guest, progress=progress)
    remember(
        directory,
        [_mark(package, one) for one in dict.fromkeys((guest, asked))],
        image.digest,
        waiting=_let_be,
    )
    return image


def _let_be() -> None:
    """A start does not wait for somebody's build, which may be a kernel's: the next start notes it."""
    raise HostError("another build is under way")


def built_guest(directory: str) -> str:
    """The guest of `auto`: the lean one where somebody has built it and it takes seconds again, else the
    stock one. Imports the builder.
    """
    from bufferzone.guestimage import build

    return _LEAN if build.was_built(directory, _LEAN) and build.is_ready(directory, _LEAN) else _STOCK


def remember_own(directory: str, digest: str, guest: str = _STOCK) -> None:
    """Note that the running package runs the image `digest`, just built, where `guest` is wanted, and where
    it is the one that nobody has to ask for. Imports the builder.
    """
    wanted = [guest, AUTO] if built_guest(directory) == guest else [guest]
    remember(directory, [_mark(fingerprint(_PACKAGE), one) for one in wanted], digest)


def _mark(package: str, guest: str) -> str:
    """By what the index knows the package with this fingerprint with this guest."""
    return package if guest == _STOCK else f"{package} {guest}"


def _places_of_root(directory: str) -> list[str]:
    """Root's store, for a user who has not built this image: what root alone may write is as good as ours."""
    try:
        found = os.stat(store.SYSTEM_STORE)
    except OSError:
        return []
    # in a user namespace root of the machine is an id that is not mapped
    trusted = found.st_uid in (0, 65534) and not found.st_mode & 0o022
    return [store.SYSTEM_STORE] if trusted and directory == store.default_store() else []


def remember(
    directory: str, marks: list[str], digest: str, waiting: Callable[[], None] = lambda: None
) -> None:
    """Note that the package with these marks runs this image; a store we may not write stays as it is.

    `waiting` is called when somebody else holds the store's lock; a `HostError` of it leaves the note out.
    """
    what = f"note the image of this package in {directory}"
    with log.passing_over(what, HostError, OSError), store.lock(directory, waiting):
        index = store.read_index(directory)
        others = [pair for pair in store.packages_of(index) if pair[0] not in marks]
        kept = [*others, *((mark, digest) for mark in marks)][-_REMEMBERED:]
        store.write_index(directory, {**index, "packages": kept})


def fingerprint(package: str) -> str:
    """A hash over path, size and time of change of every source file that an image depends on."""
    total = sha256(package.encode())
    for part in _PARTS:
        with os.scandir(os.path.join(package, part)) as entries:
            files = sorted((e for e in entries if e.name.endswith(".py")), key=lambda entry: entry.name)
        for entry in files:
            found = entry.stat()
            total.update(f"{part}/{entry.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return total.hexdigest()
