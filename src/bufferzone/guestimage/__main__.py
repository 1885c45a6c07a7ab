"""`python3 -m bufferzone.guestimage`: build, show or verify the guest image. What quickstart calls."""

from __future__ import annotations

import argparse
import sys

from bufferzone.errors import BufferzoneError
from bufferzone.guestimage import build, store
from bufferzone.model import ImageRef


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the image's directory goes to stdout, progress and errors to stderr."""
    chosen = _parser().parse_args(arguments)
    try:
        image = _image(chosen)
    except BufferzoneError as error:
        print(f"error: {error.line()}", file=sys.stderr)
        return error.exit_status
    print(image.directory)
    if chosen.verb == "show":
        _show(image)
    return 0


def _image(chosen: argparse.Namespace) -> ImageRef:
    if chosen.verb == "build":
        return build.ensure_image(
            chosen.store, guest=chosen.guest, progress=_progress, upgrade=chosen.upgrade
        )
    image = store.open_image(chosen.store, chosen.digest)
    if chosen.verb == "verify":
        store.verify(image)
        _progress("every file is what the manifest says")
    return image


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m bufferzone.guestimage", description=__doc__)
    parser.add_argument(
        "--store", default=store.default_store(), help="where images live (default: %(default)s)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("build", help="build the image if it is missing or its inputs changed")
    make.add_argument("--guest", default="stock", help="which kernel: stock, lean (default: %(default)s)")
    make.add_argument("--upgrade", action="store_true", help="ask apt for newer packages first")
    for name, text in (
        ("show", "print what the image is made of"),
        ("verify", "compare every file's SHA-256"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("digest", nargs="?", help="an image in the store (default: the current one)")
    return parser


def _show(image: ImageRef) -> None:
    manifest = store.read_manifest(image.directory)
    print(f"digest: {image.digest}\nrecipe: {manifest['recipe']}\nkernel: {manifest['kernel']['release']}")
    print(f"arguments: {' '.join(image.arguments)}")
    for name, facts in sorted(manifest["files"].items()):
        print(f"file: {name} {facts['size']} {facts['sha256']}")
    for row in manifest["packages"]:
        print(f"package: {row['name']} {row['version']}")


def _progress(line: str) -> None:
    print(f"image: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
