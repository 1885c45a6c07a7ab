"""Removes an image, with the layers that no other one has, and its disk."""

from __future__ import annotations

import os

from bufferzone.errors import HostError
from bufferzone.images import skopeo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.images.store import Store, Stored


def remove(here: Store, image: Stored) -> None:
    """Remove it, with all its names. Raises `CallerError` or `HostError`; nobody may use it any more."""
    name = image.names[0] if image.names else f"@{image.id}"
    skopeo.run(["delete", "--", f"{here.spec()}{name}"], f"cannot remove {image.id[:12]}")
    try:
        os.unlink(here.disk(image.id))
    except FileNotFoundError:
        pass  # few have one
    except OSError as error:
        raise HostError(f"cannot remove {error.filename}: {error.strerror}", code="write-failed") from error
