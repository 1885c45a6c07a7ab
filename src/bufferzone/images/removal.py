"""Removes an image, with the layers that no other one has."""

from __future__ import annotations

from bufferzone.images import skopeo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.images.store import Store, Stored


def remove(here: Store, image: Stored) -> None:
    """Remove it, with all its names. Raises `CallerError` or `HostError`; nobody may use it any more."""
    name = image.names[0] if image.names else f"@{image.id}"
    skopeo.run(["delete", "--", f"{here.spec()}{name}"], f"cannot remove {image.id[:12]}")
