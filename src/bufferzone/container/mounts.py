"""The mounts of a container: made detached, then attached at a place that the kernel resolves inside the
new root.

Sources are paths of the guest; they are opened before pivot_root. A file system is mounted on the (private)
root directory first, copied as a detached tree and unmounted again: mount(2) cannot mount on a descriptor,
and this way every type and every option of mount(2) works, also those which fsconfig(2) of Linux 6.1 does
not take. Source: runtime-spec config.md "Mounts"; runc libcontainer/rootfs_linux.go for the error texts.
"""

from __future__ import annotations

import errno
import os
import stat

from bufferzone.container import in_root, shared_namespaces
from bufferzone.errors import GuestError
from bufferzone.linux import mount as lm
from bufferzone.linux import mountoptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.linux.mountoptions import MountOptions

_CGROUP_ROOT = "/sys/fs/cgroup"
#: file systems that may become read-only, or be replaced by a bind, after they were mounted
_LATE = ("tmpfs", "cgroup", "cgroup2", "sysfs")


def mount_all(scratch: str, root: int, entries: list[dict[str, Any]]) -> list[int]:
    """Make every mount of config.json in order; raises `GuestError` with runc's text, naming the mount.

    Returns the tmpfs that are to be read-only, for `make_read_only` once everything below them is there.
    """
    late: list[int] = []
    for entry in entries:
        destination = str(entry.get("destination", ""))
        try:
            _mount_one(scratch, root, entry, destination, late)
        except OSError as error:
            what = f'error mounting "{entry.get("source", "")}" to rootfs at "{destination}"'
            raise GuestError(f"{what}: {describe(error)}", code="mount-failed") from error
    return late


def make_read_only(trees: list[int]) -> None:
    """What `mount_all` left writable; closes `trees`."""
    for tree in trees:
        lm.set_attributes(tree, add=lm.MOUNT_ATTR_RDONLY, recursive=False)
        os.close(tree)


def describe(error: OSError) -> str:
    """What failed on what, in lower case like runc does."""
    text = (error.strerror or str(error)).lower()
    if error.errno is not None and text == os.strerror(error.errno).lower() and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {text}"
    return f"{text} ({os.fsdecode(error.filename)})" if error.filename is not None else text


def detached(scratch: str, kind: str, source: str, flags: int = 0, data: str = "") -> int:
    """A new mount of a file system as a detached tree."""
    lm.mount(source, scratch, kind, flags, data)
    try:
        return lm.open_tree(scratch, recursive=False)
    finally:
        lm.unmount(scratch, lm.MNT_DETACH)


def attach(tree: int, target: int) -> None:
    """Put the detached `tree` on the object `target` refers to; closes `target`."""
    try:
        lm.move_mount(tree, "", at=target)
    finally:
        os.close(target)


def _mount_one(scratch: str, root: int, entry: dict[str, Any], destination: str, late: list[int]) -> None:
    options = mountoptions.parse(entry.get("options") or [])
    kind, source = str(entry.get("type") or "none"), str(entry.get("source") or "")
    if options.set & lm.MS_REMOUNT:
        _change(root, destination, options)
        return
    bind = kind in ("bind", shared_namespaces.MOUNT) or bool(options.set & lm.MS_BIND)
    if kind == shared_namespaces.MOUNT:
        tree = shared_namespaces.open_tree(source, destination)
    elif bind:
        tree = _existing(source, recursive=bool(options.set & lm.MS_REC))
    else:
        tree = _new(scratch, root, kind, source, destination, options)
    try:
        target = _target(root, destination, kind, tree)
        if kind == "tmpfs" and options.copy_up and not bind:
            copy_up(target, tree)
        if kind == "tmpfs" and not bind and options.set & lm.MS_RDONLY:
            options.set &= ~lm.MS_RDONLY
            late.append(os.dup(tree))
        _decorate(tree, options, bind, kind)
        attach(tree, target)
        for propagation in options.propagation:
            _propagate(tree, propagation)
    finally:
        os.close(tree)


def _existing(source: str, *, recursive: bool) -> int:
    """A copy of what is at `source` in the guest: of the share, or its own."""
    try:
        return lm.open_tree(source, recursive=recursive)
    except FileNotFoundError as error:
        raise OSError(error.errno, f"there is no {source} in the guest") from error


def _target(root: int, destination: str, kind: str, tree: int) -> int:
    """The mount point, made when missing.

    proc and sysfs take no symlink, lest the image picks where they go.
    """
    if kind in ("proc", "sysfs"):
        try:
            existing = in_root.find(root, destination, os.O_NOFOLLOW)
        except FileNotFoundError:
            pass
        else:
            if not in_root.is_directory(existing):
                raise OSError(
                    errno.ENOTDIR, f'filesystem "{kind}" must be mounted on ordinary directory', destination
                )
            return existing
    directory = in_root.is_directory(tree)
    try:
        place = (in_root.directory if directory else in_root.file)(root, destination)
    except OSError as error:
        raise OSError(error.errno, f"create mountpoint for {destination} mount: {error.strerror}") from error
    if not directory and in_root.is_directory(place):
        os.close(place)
        raise OSError(errno.EISDIR, "a file cannot be mounted on a directory")
    return place


def _new(scratch: str, root: int, kind: str, source: str, destination: str, options: MountOptions) -> int:
    """A detached new file system. A tmpfs is writable at first: for tmpcopyup, and for mounts below it."""
    flags, data = options.set & ~lm.MS_REC, list(options.data)
    if kind == "cgroup":
        kind, data = "cgroup2", []  # the guest has the unified hierarchy only; v1 options mean nothing there
    if kind == "tmpfs":
        flags &= ~lm.MS_RDONLY
        data = _with_mode_of(root, destination, data)
    try:
        return detached(scratch, kind, source or kind, flags, ",".join(data))
    except PermissionError:
        # A user namespace without a network (sysfs) or cgroup namespace of its own gets the guest's mount.
        if kind == "sysfs":
            return lm.open_tree("/sys")
        if kind == "cgroup2":
            return lm.open_tree(_CGROUP_ROOT)
        raise


def _with_mode_of(root: int, destination: str, data: list[str]) -> list[str]:
    """A tmpfs over an existing directory gets that directory's mode unless one is given, as with runc."""
    if any(item.startswith("mode=") for item in data):
        return data
    try:
        fd = in_root.find(root, destination)
    except OSError:
        return data
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    os.close(fd)
    return [*data, f"mode={mode:o}"]


def _decorate(tree: int, options: MountOptions, bind: bool, kind: str) -> None:
    """Attributes of the still detached mount; flags of a bind add to those of its source."""
    add, clear = options.attributes()
    if (add or clear) and (bind or kind in _LATE):
        lm.set_attributes(tree, add=add, clear=clear, recursive=False)
    add, clear = options.tree_attributes()
    if add or clear:
        lm.set_attributes(tree, add=add, clear=clear, recursive=True)


def _propagate(tree: int, propagation: int) -> None:
    lm.set_attributes(tree, propagation=propagation & ~lm.MS_REC, recursive=bool(propagation & lm.MS_REC))


def _change(root: int, destination: str, options: MountOptions) -> None:
    """The option `remount`: new attributes for what is mounted at `destination` already."""
    fd = in_root.find(root, destination)
    try:
        add, clear = options.attributes()
        lm.set_attributes(fd, add=add, clear=clear, recursive=False)
    finally:
        os.close(fd)


def copy_up(source: int, target: int) -> None:
    """Copy the tree in directory `source` (owners, modes, symlinks, devices) into directory `target`."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    there = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
    try:
        for name in os.listdir(here):
            _copy_entry(here, there, name)
    finally:
        os.close(here)
        os.close(there)


def _copy_entry(here: int, there: int, name: str) -> None:
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
    elif stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=there)
        source = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=there)
        copy_up(source, target)
        os.close(source)
        os.close(target)
    elif stat.S_ISREG(mode):
        _copy_file(here, there, name)
    else:
        os.mknod(name, mode, status.st_rdev, dir_fd=there)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(name, stat.S_IMODE(mode), dir_fd=there)


def _copy_file(here: int, there: int, name: str) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
    try:
        while data := os.read(source, 1 << 20):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    finally:
        os.close(source)
        os.close(target)
