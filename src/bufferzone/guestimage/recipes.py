"""The recipes there are, by name."""

from __future__ import annotations

from bufferzone.errors import UsageError
from bufferzone.guestimage.distro import Distro

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.guestimage.recipe import Recipe

#: raised when the layout of the image changes in a way that the hashes of our sources do not show
VERSION = 1


def by_name(name: str) -> Recipe:
    """The recipe called `name`; raises `UsageError` naming those there are."""
    recipes: dict[str, Recipe] = {recipe.name: recipe for recipe in (Distro(),)}
    if name not in recipes:
        raise UsageError(f"unknown image recipe {name!r}", hint=f"one of: {', '.join(recipes)}")
    return recipes[name]
