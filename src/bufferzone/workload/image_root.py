"""A root file system from an image: an overlay on its layers, which the shim mounts and alone sees.

What is written lies in the container's place. hosts, hostname and resolv.conf are files of that place.
"""

from __future__ import annotations

import os
import stat

from bufferzone.errors import HostError
from bufferzone.workload import host_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.images.fetch import Image


def make(
    place: str, image: Image, *, network: bool, hostname: str
) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The mounts of /etc's files, and what makes the root at PLACE/rootfs (see `client.job.Job`).

    `network`: names are looked up where the host looks them up. Raises `HostError`.
    """
    texts = {
        "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n",
        "hostname": f"{hostname}\n",
        "resolv.conf": host_root.resolvers() if network else "",
    }
    try:
        os.mkdir(f"{place}/rootfs", 0o755)
        overlay = host_root.overlay_place(place, image.layers)
        _like(f"{place}/upper", image.layers[0])
        mounts = [_file(place, name, text) for name, text in texts.items()]
    except OSError as error:
        text = f"cannot make a root file system: {error.filename}: {error.strerror}"
        raise HostError(text, code="root-failed") from error
    return mounts, [overlay]


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
