"""From a reference to an image that is here, pulled where it has to be. Prints nothing."""

from __future__ import annotations

import os

from bufferzone.errors import HostError, NotFoundError, UsageError
from bufferzone.images import config, reference, store
from bufferzone.log import shown
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

POLICIES = ("missing", "always", "never")
_LEAST_ID = 6
_HEX = frozenset("0123456789abcdef")


class Image(Record):
    """An image that is here. `reference` as it was asked for; `name` in full, empty for a directory.

    `id` and `digest` are those of its configuration and its manifest, empty for a directory. `layers` are
    directories, topmost first: lower directories of an overlay, never to be written to.
    """

    reference: str
    name: str = ""
    id: str = ""
    digest: str = ""
    layers: tuple[str, ...]
    config: config.Config


class Report:
    """Where the progress of a pull goes: `lines` gets plain ones; with `terminal`, a descriptor of one, it
    is shown there as bars instead.
    """

    def __init__(self, lines: Callable[[str], None] = lambda line: None, *, terminal: int = -1) -> None:
        self.lines, self.terminal = lines, terminal


def get(
    text: str, *, pull: str = "missing", report: Report | None = None, tls_verify: bool | None = None
) -> Image:
    """The image of a reference: what a container's root file system is made of, and what it asks for.

    `text`: a name in a registry (`alpine`, `ghcr.io/x/y:tag`, `x@sha256:...`), an image's id or its first
    digits, one of skopeo's transports (`oci:`, `oci-archive:`, `docker-archive:`, `containers-storage:`,
    `docker-daemon:`), or a directory (`/path`, `./path`) that is a root file system.

    `pull` is one of `POLICIES`. `tls_verify` False: a registry may speak HTTP; None: one on loopback may.
    Give the result to `workload.wish.Wish(image=...)`, and its `config` says entrypoint, cmd, env, user,
    workdir, volumes and stop signal; `workload.from_image.fill` merges it into a wish as Docker does.

    Raises `UsageError` for what is no reference, `CallerError` with the codes `image-unknown`, `image-auth`,
    `image-refused`, `image-corrupt`, `no-network`, `no-registry`, `registry-lost`, `HostError` with
    `disk-full` and others. After a failure there is no part of an image; what a killed pull left is removed
    by the next.
    """
    if pull not in POLICIES:
        raise UsageError(f"pull: expected {', '.join(POLICIES)}, got {shown(pull)}")
    wanted = reference.parse(text)
    if wanted.kind == reference.DIRECTORY:
        return _of_directory(wanted)
    here = store.ours()
    found = find(here, text)
    changes = wanted.kind == reference.TRANSPORT and not wanted.fixed  # nothing tells whether it did
    asked = pull == "always" and not wanted.fixed
    if pull != "never" and (found is None or changes or asked):
        _copy(here, wanted, report or Report(), tls_verify)
        found = find(here, text)
    if found is None:
        if pull == "never":
            raise NotFoundError(f"no such image here: {shown(text)}", hint=f"bz pull {shown(text)}")
        raise HostError(f"the image was pulled but is not in the store: {shown(text)}", code="store-damaged")
    return _of_stored(here, text, found)


def find(here: store.Store, text: str) -> store.Stored | None:
    """The image in the store that a reference or the beginning of an id means; None: there is none.

    Raises `UsageError` for a beginning that several have.
    """
    images = here.images()
    try:
        name = reference.parse(text).name
    except UsageError:
        name = ""
    for image in images:
        if name and name in image.names:
            return image
    if "@" in name:
        # a name with a digest that was pulled under a tag is the same image
        home, _, digest = name.partition("@")
        for image in images:
            if image.digest == digest and any(_home(other) == home for other in image.names):
                return image
    prefix = text.removeprefix("sha256:")
    if len(prefix) >= _LEAST_ID and set(prefix) <= _HEX:
        fitting = [image for image in images if image.id.startswith(prefix)]
        if len(fitting) > 1:
            raise UsageError(f"more than one image has an id that begins with {prefix}")
        return fitting[0] if fitting else None
    return None


def _home(name: str) -> str:
    """A full name without tag or digest."""
    name = name.partition("@")[0]
    return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name


def _of_directory(wanted: reference.Reference) -> Image:
    if not os.path.isdir(wanted.source):
        raise NotFoundError(f"no such directory: {shown(wanted.source)}", code="image-unknown")
    return Image(reference=wanted.text, layers=(wanted.source,), config=config.EMPTY)


def _of_stored(here: store.Store, text: str, found: store.Stored) -> Image:
    return Image(
        reference=text,
        name=found.names[0] if found.names else "",
        id=found.id,
        digest=found.digest,
        layers=here.directories(found),
        config=config.read(here.configuration(found.id)),
    )


def _copy(here: store.Store, wanted: reference.Reference, report: Report, tls_verify: bool | None) -> None:
    # subprocess and tempfile come with these, and a run of an image that is there needs neither
    from bufferzone.images import skopeo
    from bufferzone.linux import scratch

    plain = wanted.plain if tls_verify is None else not tls_verify
    skopeo.find()
    with scratch.scratch(f"{here.path}/pulls") as directory:
        words = ["--tmpdir", directory, "copy"]
        words += ["--src-tls-verify=false"] if plain and wanted.kind == reference.REGISTRY else []
        words += ["--", wanted.source, f"{here.spec()}{wanted.name}"]

        def tell(line: str) -> None:
            if line.startswith("Copying blob "):
                report.lines(f"layer {line.split(':')[-1][:12]}")

        report.lines(f"pulling {wanted.name if wanted.kind == reference.REGISTRY else wanted.text}")
        what = f"cannot pull {shown(wanted.text)}"
        skopeo.run(words, what, lines=tell, fd=report.terminal)
