"""Sandboxes prepared once and saved under a name: kept beside the images, restored as often as wanted.

    SNAPSHOTS/NAME/image/         a checkpoint, see docs/checkpoint.md
    SNAPSHOTS/NAME/config.json    what was saved: that of the sandbox; relative paths lead into its place
    SNAPSHOTS/NAME/rootfs/etc/    passwd and group
    SNAPSHOTS/NAME/reseed.json    what is told to each that goes on, if anything

One is made under another name and renamed when it is whole; what a killed one leaves, the next one removes.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress

from bufferzone import jsontext, oci, record, state
from bufferzone.client import checkpoint, create, fork, signals, start
from bufferzone.errors import ExistsError, HostError, NotFoundError, StateError, UsageError
from bufferzone.images import layered
from bufferzone.linux import exchange, scratch
from bufferzone.workload import idle, image_root, place, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from bufferzone.client.connection import Client

_IMAGE, _CONFIG, _RESEED, _UNFINISHED = "image", "config.json", "reseed.json", "fork-"
#: of a hook; somebody waits for it
_MOST_S = 3600


class Reseed(record.Record):
    """How a sandbox that goes on is told that it is another one now: random numbers that a process had drawn
    before it was saved are the same in all of them. In this order, before anybody gets hold of it:

    `file`: one inside that gets 64 fresh random bytes. `signal`: sent to its command, such as USR1. `hook`: a
    program that is run in it, whose failure is the sandbox's, and so is it if it takes more than `timeout_s`.
    """

    file: str = ""
    signal: str = ""
    hook: tuple[str, ...] = ()
    timeout_s: float = 30.0

    def check(self) -> None:
        """Raises `UsageError`."""
        if self.file and not self.file.startswith("/"):
            raise UsageError("reseed: expected an absolute path inside", hint="/run/seed")
        if self.signal:
            signals.number_of(self.signal)
        if not 0 < self.timeout_s < _MOST_S:
            raise UsageError(f"reseed: expected seconds, above 0 and below {_MOST_S}: {self.timeout_s}")


NOTHING = Reseed()


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


def check_free(name: str, *, replace: bool = False) -> str:
    """The directory of one to be made; raises `UsageError`, or `ExistsError` unless it is to be replaced."""
    path = os.path.join(parent(), state.check_id(name))
    if name.startswith(_UNFINISHED):
        raise UsageError(f"a snapshot's name does not begin with {_UNFINISHED}")
    if os.path.exists(path) and not replace:
        raise ExistsError(f"a snapshot with that name exists: {name}", hint=f"bz snapshots rm {name}")
    return path


def size(path: str) -> int:
    """What the one in the directory `path` takes on the disk, in bytes."""
    found = 0
    for above, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # it is being removed
                found += os.lstat(os.path.join(above, name)).st_blocks * 512
    return found


def created(path: str) -> str:
    """When the one in the directory `path` was saved: RFC 3339, UTC. Raises `NotFoundError`."""
    try:
        return start.timestamp(os.stat(os.path.join(path, _CONFIG)).st_mtime_ns)
    except FileNotFoundError:
        raise NotFoundError(f"no such snapshot: {os.path.basename(path)}") from None


def save(directory: str, name: str, reseed: Reseed = NOTHING, *, replace: bool = False) -> None:
    """Save the sandbox whose state is in `directory`, which goes on, under a name. `reseed` is done in each
    that goes on from it. `replace`: an older one goes when this one is whole. Raises `UsageError`,
    `ExistsError`, `HostError`, or what cannot be saved of it; then nothing is left.
    """
    path = check_free(name, replace=replace)
    with unnamed(directory, parent(), reseed) as made:
        try:
            if replace and os.path.exists(path):  # what is there lies in `made` then, and goes with it
                exchange.exchange(made, path)
            else:
                os.rename(made, path)
        except OSError as error:
            raise HostError(f"cannot make {path}: {error.strerror}", code="write-failed") from error


@contextmanager
def unnamed(directory: str, where: str, reseed: Reseed = NOTHING) -> Iterator[str]:
    """The same without a name, below the directory `where`: removed at the end of the context."""
    found = state.read_state(directory)
    if found["annotations"].get("bufferzone.rootfs") != "block":
        text = "a sandbox whose root file system is shared with this host cannot be saved"
        raise StateError(text, hint="start it with disk=True, bz run --disk", code="not-saveable")
    reseed.check()
    spec = oci.load(str(found["bundle"]))
    with scratch.scratch(where) as above:
        made = os.path.join(above, "snapshot")
        checkpoint.save(directory, os.path.join(made, _IMAGE), leave_running=True)
        value = fork.clone_of(spec, "snapshot", made).raw
        for entry in value["mounts"]:
            if os.path.dirname(entry.get("source", "")) == spec.bundle:
                entry["source"] = os.path.basename(entry["source"])
        state.replace_file(os.path.join(made, _CONFIG), jsontext.dumps(value).encode())
        state.replace_file(os.path.join(made, _RESEED), jsontext.dumps(record.asdict(reseed)).encode())
        image_root.write_users(made, lambda name: layered.read([spec.rootfs], name, users.MOST_BYTES))
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
            value = _read(saved, _CONFIG)
            value["hostname"] = id[:63]
            self.reseed = _read_reseed(saved)
            self._own_files(value)
            self.place.write_config(value)
            self._spec = oci.load(self.place.path, chosen={"rootfs": "block"})
        except BaseException:
            self.place.remove()
            raise

    def _own_files(self, value: dict[str, Any]) -> None:
        """What lay in the place of the one that was saved lies in ours."""
        path = self.place.path
        value["root"]["path"] = "rootfs"
        sources = {entry.get("source") for entry in value["mounts"]}
        try:
            image_root.write_users(path, lambda name: _users_file(self._saved, name))
            if "hosts" in sources:
                image_root.etc(path, network=False, hostname=value["hostname"])
        except OSError as error:
            raise HostError(
                f"cannot write {error.filename}: {error.strerror}", code="write-failed"
            ) from error
        if "idle" in sources:
            idle.write(path)

    def run_detached(self, stdio: Sequence[int], *, forked: bool) -> int:
        """Let it go on by itself; see `launch.Launch.run_detached`."""
        try:
            pid = create.run(self._order(), stdio, forked=forked)
        except BaseException:
            self.place.remove()
            raise
        self.place.close()
        return pid

    def run_held(self, stdio: Sequence[int]) -> Client:
        """Let it go on; see `launch.Launch.run_held`."""
        try:
            return create.run_held(self._order(), stdio)
        except BaseException:
            self.place.remove()
            raise

    def _order(self) -> create.Order:
        image = os.path.join(self._saved, _IMAGE)
        return create.Order(self.root, self.id, self._spec, checkpoint=image, shim=self._shim)


def _users_file(saved: str, name: str) -> bytes:
    return layered.read([os.path.join(saved, "rootfs")], name, users.MOST_BYTES)


def _read_reseed(saved: str) -> Reseed:
    """Raises OSError or ValueError."""
    found = _read(saved, _RESEED)
    timeout_s = float(found.get("timeout_s") or Reseed().timeout_s)  # older ones have none
    return Reseed(file=found["file"], signal=found["signal"], hook=tuple(found["hook"]), timeout_s=timeout_s)


def _read(saved: str, name: str) -> dict[str, Any]:
    with open(os.path.join(saved, name), encoding="utf-8") as file:
        value: dict[str, Any] = jsontext.loads(file.read())
    return value
