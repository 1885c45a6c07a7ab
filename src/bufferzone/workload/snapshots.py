"""Sandboxes prepared once and saved under a name: kept beside the images, restored as often as wanted.

    SNAPSHOTS/NAME/image/         a checkpoint, see docs/checkpoint.md
    SNAPSHOTS/NAME/config.json    what was saved: that of the sandbox, its paths absolute

One is made under another name and renamed when it is whole; what a killed one leaves, the next one removes.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager

from bufferzone import jsontext, oci, state
from bufferzone.client import checkpoint, create, fork
from bufferzone.errors import ExistsError, HostError, NotFoundError, StateError, UsageError
from bufferzone.linux import scratch
from bufferzone.workload import config_json, idle, place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from bufferzone.client.connection import Client

_IMAGE, _CONFIG, _UNFINISHED = "image", "config.json", "fork-"


def parent() -> str:
    """The directory of all of them."""
    return os.path.join(os.path.dirname(place.parent()), "snapshots")


def names() -> list[str]:
    """Those there are."""
    try:
        found = os.listdir(parent())
    except FileNotFoundError:
        return []
    return sorted(name for name in found if not name.startswith((".", _UNFINISHED)))


def find(name: str) -> str:
    """The directory of one; raises `NotFoundError`."""
    path = os.path.join(parent(), state.check_id(name))
    if name.startswith(_UNFINISHED) or not os.path.isdir(path):
        raise NotFoundError(f"no such snapshot: {name}")
    return path


def remove(name: str) -> None:
    """Remove one; raises `NotFoundError`. Sandboxes that were started from it go on."""
    shutil.rmtree(find(name))


def save(directory: str, name: str) -> None:
    """Save the sandbox whose state is in `directory`, which goes on, under a name. Raises `UsageError`,
    `ExistsError`, `HostError`, or what cannot be saved of it; then nothing is left.
    """
    path = os.path.join(parent(), state.check_id(name))
    if name.startswith(_UNFINISHED):
        raise UsageError(f"a snapshot's name does not begin with {_UNFINISHED}")
    if os.path.exists(path):
        raise ExistsError(f"a snapshot with that name exists: {name}")
    with unnamed(directory, parent()) as made:
        try:
            os.rename(made, path)
        except OSError as error:
            raise HostError(f"cannot make {path}: {error.strerror}", code="write-failed") from error


@contextmanager
def unnamed(directory: str, where: str) -> Iterator[str]:
    """The same without a name, below the directory `where`: removed at the end of the context."""
    found = state.read_state(directory)
    if found["annotations"].get("bufferzone.rootfs") != "block":
        text = "a sandbox whose root file system is shared with this host cannot be saved"
        raise StateError(text, hint="start it with the directory of a root file system", code="not-saveable")
    spec = oci.load(str(found["bundle"]))
    with scratch.scratch(where) as above:
        made = os.path.join(above, "snapshot")
        checkpoint.save(directory, os.path.join(made, _IMAGE), leave_running=True)
        value = fork.clone_of(spec, "snapshot", made).raw
        state.replace_file(os.path.join(made, _CONFIG), jsontext.dumps(value).encode())
        yield made


class Restore:
    """A sandbox to be made of a saved one: `id` below `root`. As `launch.Launch`."""

    def __init__(self, saved: str, root: str, id: str, *, shim: str = "", transient: bool = False) -> None:
        """`saved` is the directory of a snapshot. Raises `ExistsError`, `HostError`; then nothing is left."""
        self.root, self.id, self._saved, self._shim = root, state.check_id(id), saved, shim
        if os.path.exists(os.path.join(root, id)):
            raise ExistsError(f"a container with that name exists: {id}", hint=f"bz rm {id}")
        self.place = place.Place(root, id, transient=transient)
        try:
            with open(os.path.join(saved, _CONFIG), encoding="utf-8") as file:
                value = jsontext.loads(file.read())
            value["hostname"] = id[:63]
            self._own_files(value)
            self.place.write_config(value)
            self._spec = oci.load(self.place.path, chosen={"rootfs": "block"})
        except BaseException:
            self.place.remove()
            raise

    def _own_files(self, value: dict[str, Any]) -> None:
        """What lay in the place of the one that was saved lies in ours."""
        for entry in value["mounts"]:
            if entry["destination"] == config_json.INIT:
                entry["source"] = idle.write(self.place.path)

    def run_held(self, stdio: Sequence[int]) -> Client:
        """Let it go on; see `launch.Launch.run_held`."""
        image = os.path.join(self._saved, _IMAGE)
        order = create.Order(self.root, self.id, self._spec, checkpoint=image, shim=self._shim)
        try:
            return create.run_held(order, stdio)
        except BaseException:
            self.place.remove()
            raise
