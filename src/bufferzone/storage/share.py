"""The tree a sandbox shares with its guest: a private tmpfs with one bind per `model.Bind`, and nothing else.

All of it lives in the caller's own mount namespace (`own_namespace`), so the host's mount table stays as it
is and everything goes away with the process. The tree is shared (MS_SHARED), so binds that are added later
appear in virtiofsd's namespace too. Thread-safe. Refuses: names with a slash, `.` or `..`.
"""

from __future__ import annotations

import os
import stat
import threading
from functools import partial

from bufferzone.errors import HostError
from bufferzone.linux import mount as mnt
from bufferzone.linux import userns
from bufferzone.linux.process import CLONE_NEWNS, unshare
from bufferzone.storage import hostmount, pseudofiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.model import Bind

    Picked = tuple[int, bool, list[str]]


_ACLS = frozenset(("system.posix_acl_access", "system.posix_acl_default"))


def own_namespace() -> None:
    """Leave the caller's mount namespace, keep receiving the host's mounts (volumes may appear late). Call
    once."""
    try:
        unshare(CLONE_NEWNS)
        mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_SLAVE)
    except OSError as error:
        from bufferzone.linux import denial

        step = "create a mount namespace"
        hint = userns.advice() if os.geteuid() else denial.hint(error.errno or 0, os.getpid(), step)
        raise HostError(
            f"cannot create a mount namespace: {error.strerror}", hint=hint, code="no-mount-namespace"
        ) from error


class Tree:
    """The root of the shared tree, mounted at `path`. Owns the mount and `fd`, an O_PATH descriptor of its
    root."""

    def __init__(self, path: str) -> None:
        """Mount the root on the existing directory `path`; raises HostError."""
        self.path = path
        self.fd = -1
        self._lock = threading.Lock()
        try:
            # mount points only; virtiofsd sees it read-only, or a guest could swap one for a symbolic link
            mnt.mount(
                "bufferzone", path, "tmpfs", mnt.MS_NOSUID | mnt.MS_NODEV, "size=1m,nr_inodes=4096,mode=755"
            )
            mnt.mount("", path, flags=mnt.MS_SHARED)
            self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(
                f"cannot mount the shared tree on {path}: {error.strerror}", code="share-failed"
            ) from error
        self._names: list[str] = []

    def lift(self) -> None:
        """Get ready to follow this process into another mount namespace; `land` is due there.

        The copy stays in the tree's peer group, so that what is added later goes on to appear in virtiofsd's
        namespace. Raises HostError.
        """
        try:
            copy = mnt.open_tree("", at=self.fd)
        except OSError as error:
            raise HostError(f"cannot move the shared tree: {error.strerror}", code="share-failed") from error
        os.close(self.fd)
        self.fd, self.path = copy, ""

    def land(self, path: str) -> None:
        """Mount the lifted tree on the existing directory `path`; raises HostError."""
        try:
            mnt.move_mount(self.fd, path)
        except OSError as error:
            raise HostError(
                f"cannot mount the shared tree on {path}: {error.strerror}", code="share-failed"
            ) from error
        self.path = path

    def move(self, path: str) -> None:
        """Have it mounted on the existing directory `path` instead; raises HostError.

        Removing a directory takes the mounts with it that other namespaces have there: rmdir(2) does not ask.
        """
        with self._lock:
            try:
                mnt.mount(self.path, path, flags=mnt.MS_MOVE)
            except OSError as error:
                raise HostError(
                    f"cannot move the shared tree to {path}: {error.strerror}", code="share-failed"
                ) from error
            self.path = path

    def add(self, bind: Bind, where: Callable[[Callable[[], Picked]], Picked] | None = None) -> list[str]:
        """Bind `bind.source` (symbolic links followed, as runc does) to `bind.name`. `where` calls what it is
        given in the mount namespace in which the source is looked for, None: in ours. Returns where below the
        source something is mounted that is not shared.

        Raises HostError naming the source; then the tree is as it was.
        """
        _check_name(bind.name)
        try:
            tree, directory, pseudo = _pick(bind) if where is None else where(partial(_pick, bind))
        except OSError as error:
            raise _refused(bind, error) from error
        try:
            with self._lock:
                target = os.path.join(self.path, bind.name)
                _make_point(target, directory)
                try:
                    mnt.move_mount(tree, target)
                except OSError:
                    _remove_point(target)
                    raise
                self._names.append(bind.name)
                _take_off(target, pseudo)
        except OSError as error:
            raise _refused(bind, error) from error
        finally:
            os.close(tree)
        return pseudo

    def remove(self, name: str) -> None:
        """Take a bind out of the tree. A guest that still uses it keeps it until it lets go; twice is
        harmless."""
        with self._lock:
            if name in self._names:
                self._names.remove(name)
                target = os.path.join(self.path, name)
                mnt.unmount(target, mnt.MNT_DETACH | mnt.UMOUNT_NOFOLLOW)
                _remove_point(target)

    def has_acl(self, name: str) -> bool:
        """Whether the root of a bind has a POSIX ACL, of its own or for what is made in it: a guest does not
        obey it.
        """
        try:
            names = os.listxattr(os.path.join(self.path, name), follow_symlinks=False)
        except OSError:
            return False  # a file system without attributes, or out of our reach
        return not _ACLS.isdisjoint(names)

    def names(self) -> list[str]:
        """What is in the tree now."""
        with self._lock:
            return list(self._names)

    def close(self) -> None:
        """Unmount everything. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            try:
                if self.path:
                    mnt.unmount(self.path, mnt.MNT_DETACH)
            except OSError as error:
                raise HostError(f"cannot unmount the shared tree {self.path}: {error.strerror}") from error

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > 255:
        raise ValueError(f"not a name for a bind: {name!r}")


def _pick(bind: Bind) -> Picked:
    """A detached, restricted copy of the source's tree, whether it is a directory, and what of it has to be
    taken off. Raises OSError, `HostError`.
    """
    if bind.type:
        return _restricted(hostmount.open_tree(bind), bind), True, []
    source = os.open(bind.source, os.O_PATH | os.O_CLOEXEC)
    try:
        kind = pseudofiles.kind_of(source)
        if kind:
            raise HostError(
                f"cannot share {bind.source}: files of {kind} have no size, so a guest would find them empty",
                hint="copy what is needed into a file",
                code="pseudo-files",
            )
        if pseudofiles.has_more_than_its_size(source):
            raise HostError(
                f"cannot share {bind.source}: it goes on after its size, so a guest would not see all of it",
                hint="copy what is needed into a file",
                code="pseudo-files",
            )
        directory = stat.S_ISDIR(os.fstat(source).st_mode)
        pseudo = pseudofiles.mounted_below(source) if bind.recursive and directory else []
        tree = mnt.open_tree("", at=source, recursive=bind.recursive)
        return _restricted(tree, bind), directory, pseudo
    finally:
        os.close(source)


def _restricted(tree: int, bind: Bind) -> int:
    """`tree`, restricted; closed when that fails."""
    try:
        _restrict(tree, bind)
    except OSError:
        os.close(tree)
        raise
    return tree


def _restrict(tree: int, bind: Bind) -> None:
    """Read-only where asked, and never a way to a device: virtiofsd may override the mode of a node it finds.

    Private, as the default of Docker and podman is: a mount that the host makes below the source later would
    come without these restrictions. On the shared root the bind becomes shared with virtiofsd's namespace
    alone.
    """
    add = mnt.MOUNT_ATTR_NODEV | mnt.MOUNT_ATTR_NOSUID
    mnt.set_attributes(tree, add=add, propagation=mnt.MS_PRIVATE, recursive=bind.recursive)
    if bind.read_only:
        mnt.set_attributes(tree, add=mnt.MOUNT_ATTR_RDONLY, recursive=bind.read_only_below)


def _take_off(target: str, pseudo: list[str]) -> None:
    """Unmount below an attached bind; where a user namespace may not, it is covered."""
    for path in pseudo:
        place = os.path.join(target, path)
        try:
            mnt.unmount(place, mnt.MNT_DETACH | mnt.UMOUNT_NOFOLLOW)
        except OSError:
            flags = mnt.MS_RDONLY | mnt.MS_NOSUID | mnt.MS_NODEV | mnt.MS_NOEXEC
            mnt.mount("bufferzone", place, "tmpfs", flags, "nr_inodes=2,size=4k")


def _make_point(target: str, directory: bool) -> None:
    if directory:
        os.mkdir(target, 0o755)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))


def _remove_point(target: str) -> None:
    try:
        os.rmdir(target)
    except NotADirectoryError:
        os.unlink(target)


def _refused(bind: Bind, error: OSError) -> HostError:
    what = f"mount {bind.source or 'none'} ({bind.type})" if bind.type else f"share {bind.source}"
    return HostError(f"cannot {what}: {os.strerror(error.errno or 0)}", code="share-failed")
