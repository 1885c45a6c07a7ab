"""Gives the waiter the container's face on the host: its root file system, its volumes, a PID namespace.

Podman joins the mount namespace of the pid it was given (`podman cp`, `podman top`); were that the host's, a
copy into the container would land on the host. Paths below the new root are resolved by the kernel inside it,
so links in the image lead nowhere else. What only exists in the guest is not here: in place of a tmpfs is an
empty one that nobody can write to, so that a copy into it fails, and does not land where the container does
not see it. Nothing can be imported in that root, so what is needed there is imported at the top.
"""

from __future__ import annotations

import os

from bufferzone.client.process_table import ProcessTable
from bufferzone.errors import HostError
from bufferzone.linux import filesystem, process
from bufferzone.linux import mount as mnt
from bufferzone.linux.identity import is_real_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.client.job import Face

_COVER_FLAGS = mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC
_GUESTS_OWN = -1  # in place of the tree of a volume: a tmpfs that is the guest's
_S_IFMT, _S_IFDIR = 0o170000, 0o040000  # the stat module costs an import


def fork_in_own_pid_namespace() -> int:
    """os.fork() whose child is PID 1 of a new PID namespace; a plain fork without the right to do so."""
    if os.geteuid() != 0:
        return os.fork()
    from bufferzone.linux import pidns

    try:
        return pidns.fork()
    except OSError as error:
        from bufferzone.linux import denial

        step = "create a PID namespace"
        hint = denial.hint(error.errno or 0, os.getpid(), step)
        raise HostError(
            f"cannot {step}: {os.strerror(error.errno or 0)}", hint=hint, code="stand-in"
        ) from error


def enter_root(face: Face, *, on_disk: bool) -> ProcessTable | None:
    """Make the container's root file system ours, in a mount namespace of our own; root only, else nothing.

    `on_disk`: the guest has a copy, so that the host's files are not the container's. Then our root is empty
    and read-only, and `podman cp` fails instead of reading or changing what the container does not see.

    Call when the container is created: its mount points exist then. Returns the table on /proc, if the image
    has a place for it and we are real root: to make readers wait, fanotify wants the machine's CAP_SYS_ADMIN.
    Raises HostError.
    """
    if os.geteuid() != 0:
        return None
    step = "the root file system"
    table = ProcessTable() if is_real_root() else None
    try:
        process.unshare(process.CLONE_NEWNS)
        mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
        volumes = [] if on_disk else face.volumes
        trees = [(_volume(*volume), volume[1]) for volume in volumes]
        root = -1 if on_disk else _tree(face.rootfs, read_only=False)
        if table is not None:
            table.make()
        if on_disk:
            _cover(face.rootfs)
        else:
            _attach_root(root, face.rootfs)
        os.chdir(face.rootfs)
        mnt.pivot_root(".", ".")
        mnt.unmount(".", mnt.MNT_DETACH)
        os.chdir("/")
        _furnish(trees, face.guests)
        step = "/proc"
        shown = table is not None and table.show()
        if on_disk:
            mnt.set_attributes(-1, add=mnt.MOUNT_ATTR_RDONLY, path="/", recursive=False)
        return table if shown else None
    except OSError as error:
        text = f"cannot show {step} of the container on the host: {os.strerror(error.errno or 0)}"
        raise HostError(text, code="stand-in") from error


def _cover(path: str) -> None:
    """An empty root with nothing but a place for /proc."""
    mnt.mount("bufferzone", path, "tmpfs", _COVER_FLAGS, "size=16k,nr_inodes=16,mode=755")
    os.mkdir(f"{path}/proc", 0o555)


def _attach_root(tree: int, path: str) -> None:
    """Mount `tree` at `path`, which may be a link: move_mount(2) follows none in the name of its target."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    mnt.move_mount(tree, "", at=place)
    os.close(place)
    os.close(tree)


def _tree(path: str, *, read_only: bool) -> int:
    fd = mnt.open_tree(path)
    add = mnt.MOUNT_ATTR_NOSUID | mnt.MOUNT_ATTR_NODEV | (mnt.MOUNT_ATTR_RDONLY if read_only else 0)
    mnt.set_attributes(fd, add=add, propagation=mnt.MS_PRIVATE)
    return fd


def _volume(source: str, target: str, read_only: bool) -> int:
    """The tree of a volume, or `_GUESTS_OWN`: of a tmpfs on /dev/shm, too, see `sandbox/mounts.py`."""
    if not source:
        return _GUESTS_OWN
    tree = _tree(source, read_only=read_only)
    if target.rstrip("/") != "/dev/shm" or filesystem.magic_of(tree) != filesystem.TMPFS:
        return tree
    os.close(tree)
    return _GUESTS_OWN


def _furnish(trees: list[tuple[int, str]], guests: list[str]) -> None:
    """Mount volumes and covers of the guest's own tmpfs, in the order of config.json."""
    covers: list[str] = []
    for tree, target in trees:
        if tree != _GUESTS_OWN:
            _attach(tree, target, guests, covers)
            continue
        _make_place(target, covers, is_directory=True)
        if os.path.isdir(target):  # else it is below something else of the guest's
            mnt.mount("bufferzone", target, "tmpfs", _COVER_FLAGS, "size=64k,nr_inodes=256,mode=755")
            covers.append(target)
    for target in covers:
        mnt.set_attributes(-1, add=mnt.MOUNT_ATTR_RDONLY, path=target, recursive=False)


def _attach(tree: int, target: str, guests: list[str], covers: list[str]) -> None:
    """Mount `tree` at `target`, links followed within our root; on one of `covers` a place for it is made.

    A place that is on one of `guests`, what is mounted in the guest alone, is passed over: it is not here.
    Any other failure is an error, though the image or the guest made it: else what is copied to the volume
    would land below it, without a word. Raises `HostError`.
    """
    place = -1
    try:
        _make_place(target, covers, is_directory=os.fstat(tree).st_mode & _S_IFMT == _S_IFDIR)
        place = os.open(target, os.O_PATH | os.O_CLOEXEC)
        mnt.move_mount(tree, "", at=place)
    except OSError as error:
        if not _is_below(target, guests):
            text = f"cannot show the volume {target!a} on the host: {os.strerror(error.errno or 0)}"
            raise HostError(text, code="stand-in") from error
    finally:
        os.close(tree)
        if place >= 0:
            os.close(place)


def _make_place(target: str, covers: list[str], *, is_directory: bool) -> None:
    """What is mounted on a cover has to have its place there; the image is left as it is."""
    if os.path.lexists(target) or not _is_below(target, covers):
        return
    if is_directory:
        os.makedirs(target, 0o755)
        return
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _is_below(target: str, mounts: list[str]) -> bool:
    """Whether the place lies on one of these mounts, links followed as the guest does."""
    place = os.path.realpath(target)
    return any(place.startswith(os.path.realpath(other).rstrip("/") + "/") for other in mounts)
