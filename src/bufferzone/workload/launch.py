"""From a wish to a container that runs: its place on the disk, its bundle, its start; both gone in the end.

Where the guest image is missing it is built first, with progress, and then it goes on. Prints nothing.
"""

from __future__ import annotations

import os

from bufferzone import log, oci, state
from bufferzone.client import container, create, removal, signals
from bufferzone.errors import BufferzoneError, CallerError, ExistsError, HostError
from bufferzone.images import store
from bufferzone.oci.host import check_host
from bufferzone.wire import task
from bufferzone.workload import config_json, host_root, idle, image_root, place, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from bufferzone.client.connection import Client
    from bufferzone.workload.wish import Wish

    _T = TypeVar("_T")

_ID_BYTES = 6


def new_id() -> str:
    """An id for what has no name."""
    return os.urandom(_ID_BYTES).hex()


class Launch:
    """A container to be made from a wish: `id` below `root`. A context manager that owns its place until the
    container is there, and removes it when that fails.
    """

    def __init__(self, wish: Wish, root: str, id: str, *, shim: str = "", transient: bool = False) -> None:
        """Raises what is wrong with the wish; then nothing is left. `transient`: see `Place`."""
        self.root, self.id = root, state.check_id(id)
        wish.hostname = wish.hostname or id[:63]
        if os.path.exists(os.path.join(root, id)):
            raise ExistsError(f"a container with that name exists: {id}", hint=f"bz rm {id}")
        if wish.disk and wish.image is not None and not wish.image.id:
            wish.rootfs, wish.image = (
                wish.image.layers[0],
                None,
            )  # a directory: no other has it, nothing is kept
        disk = store.ours().disk(wish.image.id) if wish.disk and wish.image else ""
        chosen = config_json.chosen(wish, disk)
        init = config_json.find_init() if wish.init and not wish.idle else ""
        self.place = place.Place(root, id, transient=transient)
        self._rootfs: list[list[Any]] = []
        self._shim, self._inside = shim, wish.inside
        try:
            mounts, user = self._make_root(wish, disk)
            init = idle.write(self.place.path) if wish.idle else init
            self.place.write_config(config_json.config_json(wish, user=user, mounts=mounts, init=init))
            self.place.write_ports(wish.publish)
            self._spec = oci.load(self.place.path, chosen=chosen)
            check_host(self._spec)
        except BaseException:
            self.place.remove()
            raise

    def _make_root(self, wish: Wish, disk: str) -> tuple[list[dict[str, Any]], users.User]:
        """The mounts that belong to the root file system, and the wish's user as it knows him."""
        path, network = self.place.path, wish.network == "passt"
        if wish.rootfs:
            if not os.path.isdir(wish.rootfs):
                raise CallerError(f"no such directory: {wish.rootfs}", code="no-image")
            return [], users.find(wish.rootfs, wish.user)
        if wish.image is None:
            mounts = host_root.make(path, network=network, hostname=wish.hostname, read_only=wish.read_only)
            return mounts, users.find(os.path.join(path, "rootfs"), wish.user)
        self.place.note_image(wish.image.id)
        if disk:
            image_root.make_disk(path, wish.image, disk, shim=self._shim)
            mounts = image_root.etc(path, network=network, hostname=wish.hostname)
        else:
            made = image_root.make(path, wish.image, network=network, hostname=wish.hostname)
            mounts, self._rootfs = made
        return mounts, users.find_in_layers(wish.image.layers, wish.user)

    def _order(self) -> create.Order:
        return create.Order(
            self.root, self.id, self._spec, shim=self._shim, rootfs=self._rootfs, within=self._inside
        )

    def run_attached(
        self, stdio: Sequence[int], *, keep: bool, progress: Callable[[str], None], timeout_s: float = 0.0
    ) -> int:
        """Run it to its end; its exit status. `timeout_s`: after that many seconds it is killed (137).

        For a program that does nothing else meanwhile: signals are passed on.
        """
        made = False
        try:
            with _Alarm(os.path.join(self.root, self.id), timeout_s) as alarm:
                status = _with_image(
                    lambda: create.run_attached(
                        self._order(), stdio, keep=keep, pass_signals=True, begun=alarm.set
                    ),
                    progress,
                )
            made = keep
            return status
        finally:
            self._settle(made)

    def run_detached(self, stdio: Sequence[int], *, forked: bool, progress: Callable[[str], None]) -> int:
        """Start it and return the pid of what stands for it; `forked`: see `client.detach`."""
        made = False
        try:
            pid = _with_image(lambda: create.run(self._order(), stdio, forked=forked), progress)
            made = True
            return pid
        finally:
            self._settle(made)

    def run_held(self, stdio: Sequence[int], *, progress: Callable[[str], None]) -> Client:
        """Start it and return a connection: with its end, whatever ends that, the sandbox ends. The place
        stays locked until it is closed.
        """
        client = None
        try:
            client = _with_image(lambda: create.run_held(self._order(), stdio), progress)
            return client
        finally:
            if client is None:
                self.place.remove()

    def _settle(self, made: bool) -> None:
        if made:
            self.place.close()
        else:
            self.place.remove()


def _with_image(work: Callable[[], _T], progress: Callable[[str], None]) -> _T:
    """`work`; where there is no guest image, again once it is built."""
    try:
        return work()
    except HostError as error:
        if error.code != "image-missing":
            raise
    from bufferzone import config
    from bufferzone.guestimage import build, current

    store = config.load().image_store
    image = build.ensure_image(store, progress=progress)
    current.remember_own(store, image.digest)
    return work()


class _Alarm:
    """A context that kills the container in `directory` so many seconds after `set`, 0: never."""

    def __init__(self, directory: str, seconds: float) -> None:
        self._directory, self._seconds = directory, seconds
        self._timer: threading.Timer | None = None

    def set(self) -> None:
        """The time runs from now on."""
        if self._seconds:
            import threading

            self._timer = threading.Timer(self._seconds, kill, [self._directory])
            self._timer.daemon = True
            self._timer.start()

    def __enter__(self) -> _Alarm:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()


def kill(directory: str, number: int = signals.KILL, *, everybody: bool = True) -> None:
    """Send a signal to every process of a container, or its first; one that has ended is none the worse."""
    request = task.KillRequest(id=os.path.basename(directory), signal=number, all=everybody)
    # it ended at that moment, or its shim did, and then so does whoever waits for it
    with log.passing_over(f"kill {request.id}", BufferzoneError):
        container.ask(directory, "Kill", request, "kill")


def remove(root: str, id: str, *, force: bool, shim: str = "") -> None:
    """Remove a container with its place, if it has one. Raises `NotFoundError`, or `StateError` for one that
    runs unless `force`.
    """
    directory = container.find(root, id)
    try:
        bundle = str(state.read_state(directory)["bundle"])
    except (BufferzoneError, ValueError, KeyError):
        bundle = ""
    removal.remove(directory, id, force=force, program=shim)
    if bundle:
        place.remove_of(bundle)
