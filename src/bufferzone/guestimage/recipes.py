"""The recipes there are, by the guest that is made with each."""

from __future__ import annotations

from bufferzone.errors import UsageError
from bufferzone.guestimage.distro import Distro
from bufferzone.guestimage.lean import Lean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.guestimage.recipe import Recipe

#: raised when the layout of the image changes in a way that the hashes of our sources do not show
VERSION = 1


STOCK, LEAN = "stock", "lean"


def of_guest(guest: str) -> Recipe:
    """The recipe of `guest`; raises `UsageError` naming those there are."""
    recipes: dict[str, Recipe] = {STOCK: Distro(), LEAN: Lean()}
    if guest not in recipes:
        raise UsageError(f"unknown guest {guest!r}", hint=f"one of: {', '.join(recipes)}")
    return recipes[guest]
