"""A root file system from an image: an overlay on its layers, which the shim mounts and alone sees.

What is written lies in the container's place. hosts, hostname and resolv.conf are files of that place. Or it
is one file, which all sandboxes of the image on a disk share, and what is written lies in the guest's memory.
"""

from __future__ import annotations

import os
import stat

from bufferzone.errors import HostError
from bufferzone.images import layered
from bufferzone.workload import host_root, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.images.fetch import Image


def make(
    place: str, image: Image, *, network: bool, hostname: str
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The mounts of /etc's files, and what makes the root at PLACE/rootfs (see `client.job.Job`).

    `network`: names are looked up where the host looks them up. Raises `HostError`.
    """
    try:
        os.mkdir(f"{place}/rootfs", 0o755)
        overlay = host_root.overlay_place(place, image.layers)
        _like(f"{place}/upper", image.layers[0])
        return etc(place, network=network, hostname=hostname), [overlay]
    except OSError as error:
        raise _failed(error) from error


def make_disk(place: str, image: Image, path: str, *, shim: str = "") -> None:
    """PLACE/rootfs with what tells who its users are, and the EROFS file `path` with all of the image, made
    where it is missing. Raises `HostError`.
    """
    from bufferzone.client import imagedisk  # with it comes subprocess

    at = f"{place}/rootfs"
    try:
        os.mkdir(at, 0o755)
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            layers = image.layers
            options = [f"lowerdir={host_root.lower(layers)}"] if len(layers) > 1 else []
            imagedisk.pack(path, source=layers[0], options=options, at=at, shim=shim)
        write_users(place, lambda name: layered.read(image.layers, name, users.MOST_BYTES))
    except OSError as error:
        raise _failed(error) from error


def write_users(place: str, read: Callable[[str], bytes]) -> None:
    """PLACE/rootfs/etc with the files that name users, as `read` has them: all that the host looks up in the
    root file system of a sandbox on a disk. Raises OSError.
    """
    os.makedirs(f"{place}/rootfs/etc", 0o755, exist_ok=True)
    for name in users.FILES:
        with open(f"{place}/rootfs/{name}", "wb") as file:
            file.write(read(name))


def etc(place: str, *, network: bool, hostname: str) -> list[dict[str, Any]]:
    """The files of /etc that are a sandbox's own, and their mounts. Raises OSError."""
    texts = {
        "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n",
        "hostname": f"{hostname}\n",
        "resolv.conf": host_root.resolvers() if network else "",
    }
    return [_file(place, name, text) for name, text in texts.items()]


def _failed(error: OSError) -> HostError:
    text = f"cannot make a root file system: {error.filename}: {error.strerror}"
    return HostError(text, code="root-failed")


def _like(upper: str, top: str) -> None:
    """The root's own owner and mode are those of the directory that is written to."""
    found = os.stat(top)
    os.chmod(upper, stat.S_IMODE(found.st_mode))
    os.chown(upper, found.st_uid, found.st_gid)


def _file(place: str, name: str, text: str) -> dict[str, Any]:
    path = f"{place}/{name}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o644)
    return {"destination": f"/etc/{name}", "type": "bind", "source": path, "options": ["bind"]}
