"""`bz pull`: fetch images, or look whether they changed; the id of each is printed."""

from __future__ import annotations

from bufferzone.cli import output
from bufferzone.cli.bz import pulling
from bufferzone.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

FLAGS = (Flag("quiet q", "", "the ids alone"), pulling.TLS)
USAGE = "[options] IMAGE..."
DESCRIPTION = (
    "skopeo fetches: registries.conf(5), policy.json(5) and the auth file of skopeo login are honoured.\n"
    "IMAGE: NAME[:TAG], REGISTRY/NAME[:TAG], NAME@DIGEST, oci:DIR, oci-archive:FILE, docker-archive:FILE,\n"
    "containers-storage:NAME (Podman's), docker-daemon:NAME."
)
WORDS = (1, -1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Fetch them."""
    for word in words:
        image = pulling.get(options, word, pull="always")
        output.print_text(f"{image.id or image.layers[0]}\n")
    return 0
