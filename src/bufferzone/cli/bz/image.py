"""`bz image`: list, remove, describe images, and say what they take on the disk."""

from __future__ import annotations

import json

from bufferzone.cli import output
from bufferzone.cli.bz import images
from bufferzone.cli.flags import Flag
from bufferzone.errors import NotFoundError, StateError, UsageError
from bufferzone.images import fetch, removal, store
from bufferzone.log import shown
from bufferzone.workload import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("all a", "", "prune: also those with a name that no container uses"),
    Flag("force f", "", "rm: an unknown image is no failure"),
    *images.FLAGS,
)
USAGE = "[options] ls | rm IMAGE... | prune | df | inspect IMAGE..."
DESCRIPTION = (
    "An image goes with all its names. One that a container was made from stays until that is removed."
)
WORDS = (1, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Do it."""
    action, *names = words
    if action == "ls" and not names:
        return images.run(options, [])
    if action == "df" and not names:
        return _df(options)
    if action == "prune" and not names:
        return _prune(options)
    if action == "rm" and names:
        return _rm(options, names)
    if action == "inspect" and names:
        return _inspect(names)
    raise UsageError(f"expected {USAGE.removeprefix('[options] ')}, got {shown(' '.join(words))}")


def _found(here: store.Store, name: str) -> store.Stored:
    found = fetch.find(here, name)
    if found is None:
        raise NotFoundError(f"no such image here: {shown(name)}", hint="bz images")
    return found


def _rm(options: Options, names: list[str]) -> int:
    here, used = store.ours(), place.images_in_use()
    for name in names:
        if options.force and fetch.find(here, name) is None:
            continue
        image = _found(here, name)
        if image.id in used:
            raise StateError(
                f"the image is in use by a container: {shown(name)}", hint="bz rm", code="image-in-use"
            )
        removal.remove(here, image)
        output.print_text("".join(f"{word}\n" for word in image.names or (image.id,)))
    return 0


def _prune(options: Options) -> int:
    here, used = store.ours(), place.images_in_use()
    for image in here.images():
        if image.id not in used and (options.all or not image.names):
            removal.remove(here, image)
            output.print_text(f"{image.id}\n")
    return 0


def _df(options: Options) -> int:
    here = store.ours()
    found, used = here.images(), place.images_in_use()
    idle = [image for image in found if image.id not in used]
    busy = {layer for image in found if image.id in used for layer in image.layers}
    sizes = here.layer_sizes()
    free = sum(sizes[layer] for layer in {layer for image in idle for layer in image.layers} - busy)
    value = {"images": len(found), "in_use": len(found) - len(idle)}
    value |= {"layers": len(sizes), "size": sum(sizes.values()), "reclaimable": free}
    if options.json:
        output.print_text(json.dumps(value, indent=2) + "\n")
        return 0
    row = [str(value["images"]), str(value["in_use"]), str(value["layers"])]
    row += [images.size(value["size"]), images.size(free)]
    output.print_table([["IMAGES", "IN USE", "LAYERS", "SIZE", "RECLAIMABLE"], row])
    return 0


def _inspect(names: list[str]) -> int:
    here = store.ours()
    forms = []
    for name in names:
        image = _found(here, name)
        forms.append({**images.form(image), "config": here.configuration(image.id)})
    output.print_text(json.dumps(forms, indent=2) + "\n")
    return 0
