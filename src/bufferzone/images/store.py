"""The store of images and layers: skopeo writes it (the containers/storage library), we read it.

    STORAGE/overlay-images/images.json          which images there are, with names, digest and topmost layer
    STORAGE/overlay-images/ID/=BASE64           their blobs: `sha256:ID` is the configuration
    STORAGE/overlay-layers/layers.json          which layer lies on which
    STORAGE/overlay/LAYER/diff, link            its files; a short name for them in STORAGE/overlay/l/

It lies beside the guest images of this user. On a file system where no overlay can be written it is of the
kind `vfs`: each layer is a whole copy, in STORAGE/vfs/dir. Files are replaced by rename, so that reading
needs no lock. Source: containers-storage(1), containers/storage's types for both indexes.
"""

from __future__ import annotations

import binascii
import os

from bufferzone import config as settings
from bufferzone import jsontext
from bufferzone.errors import HostError
from bufferzone.linux import filesystem
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_OVERLAY_MAGIC = 0x794C7630
_MOST_BYTES = 64 << 20


class Stored(Record):
    """One image in the store. `layers` are ids, topmost first; `size` what they unpack to, in bytes."""

    id: str
    digest: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    created: str
    size: int


class Store:
    """The store in `path`, which need not be there yet."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._driver = ""

    @property
    def driver(self) -> str:
        """`overlay` or `vfs`. Makes the directory. Raises `HostError`."""
        if not self._driver:
            self._driver = "overlay" if os.path.isdir(f"{self.path}/overlay-images") else self._choose()
        return self._driver

    def _choose(self) -> str:
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            fd = os.open(self.path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot make {self.path}: {error.strerror}", code="no-dir") from error
        try:
            return "vfs" if filesystem.magic_of(fd) == _OVERLAY_MAGIC else "overlay"
        finally:
            os.close(fd)

    def spec(self) -> str:
        """How skopeo is told of it, in front of a name or @ID."""
        options = ":overlay.skip_mount_home=true" if self.driver == "overlay" else ""
        return f"containers-storage:[{self.driver}@{self.path}+{self.path}/run{options}]"

    def images(self) -> list[Stored]:
        """All that are whole, in the order they came. Raises `HostError` for an index that is none."""
        rows = self._index(f"{self.driver}-images/images.json")
        layers = {str(row["id"]): row for row in self._index(f"{self.driver}-layers/layers.json")}
        found = []
        for row in rows:
            chain = _chain(layers, str(row.get("layer") or ""))
            if chain is None:
                continue  # it is being removed at this moment
            image = Stored(
                id=str(row["id"]),
                digest=str(row.get("digest") or ""),
                names=tuple(str(name) for name in row.get("names") or ()),
                layers=tuple(chain),
                created=str(row.get("created") or ""),
                size=sum(int(layers[id].get("diff-size") or 0) for id in chain),
            )
            found.append(image)
        return found

    def layer_sizes(self) -> dict[str, int]:
        """What each layer takes unpacked, by id."""
        rows = self._index(f"{self.driver}-layers/layers.json")
        return {str(row["id"]): int(row.get("diff-size") or 0) for row in rows}

    def directories(self, image: Stored) -> tuple[str, ...]:
        """Where its layers lie, topmost first, as short as there are names for them."""
        if self.driver == "vfs":
            return tuple(f"{self.path}/vfs/dir/{id}" for id in image.layers[:1])
        return tuple(self._short(id) for id in image.layers)

    def _short(self, id: str) -> str:
        try:
            with open(f"{self.path}/overlay/{id}/link", encoding="ascii") as file:
                link = file.read(100).strip()
        except (OSError, UnicodeDecodeError):
            link = ""
        short = f"{self.path}/overlay/l/{link}"
        return short if link.isalnum() and os.path.isdir(short) else f"{self.path}/overlay/{id}/diff"

    def disk(self, id: str) -> str:
        """The file that holds all of an image; it need not be there: see `workload.image_root`."""
        return os.path.join(os.path.dirname(self.path), "disks", f"{id}.erofs")

    def configuration(self, id: str) -> Any:
        """The configuration blob of an image, parsed. Raises `HostError`."""
        name = binascii.b2a_base64(f"sha256:{id}".encode(), newline=False).decode()
        return self._json(f"{self.driver}-images/{id}/={name}")

    def _index(self, name: str) -> list[dict[str, Any]]:
        if not os.path.exists(f"{self.path}/{name}"):
            return []
        rows = self._json(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
            raise _damaged(f"{self.path}/{name}", "not a list of objects")
        return rows

    def _json(self, name: str) -> Any:
        path = f"{self.path}/{name}"
        try:
            with open(path, "rb") as file:
                return jsontext.loads(file.read(_MOST_BYTES).decode())
        except OSError as error:
            raise _damaged(path, str(error.strerror)) from error
        except (ValueError, RecursionError) as error:
            raise _damaged(path, "not JSON") from error


def _damaged(path: str, reason: str) -> HostError:
    return HostError(f"the store of images is damaged: {path}: {reason}", code="store-damaged")


def _chain(layers: dict[str, dict[str, Any]], top: str) -> list[str] | None:
    """The layer and those below it; None when one of them is missing."""
    chain: list[str] = []
    while top:
        row = layers.get(top)
        if row is None or top in chain:
            return None
        chain.append(top)
        top = str(row.get("parent") or "")
    return chain


def ours() -> Store:
    """This user's."""
    return Store(os.path.join(os.path.dirname(settings.load().image_store.rstrip("/")), "storage"))
