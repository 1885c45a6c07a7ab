"""The root file system of a container: from a directory of the guest to the root of the process.

Everything happens in the child, in its own mount namespace, before pivot_root; nothing of the guest is
reachable afterwards. Source: runtime-spec config-linux.md (default file systems, devices, masked and
read-only paths), runc libcontainer/rootfs_linux.go, pivot_root(2) for `pivot_root(".", ".")`.
"""

from __future__ import annotations

import os

from bufferzone.container import in_root, nodes
from bufferzone.container.mounts import attach, describe, detached, make_read_only, mount_all
from bufferzone.errors import GuestError, SpecError
from bufferzone.linux import mount as lm
from bufferzone.linux import terminal
from bufferzone.linux.mountoptions import PROPAGATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
)


def prepare(spec: dict[str, Any], ahead: dict[int, int]) -> int:
    """Make the rootfs a mount of its own with everything of the spec on it; return it as an O_PATH
    descriptor. `ahead`: see `nodes.make_ahead`.
    """
    linux: dict[str, Any] = spec.get("linux") or {}
    path = str((spec.get("root") or {}).get("path") or "")
    propagation = _root_propagation(linux) or lm.MS_SLAVE | lm.MS_REC
    if propagation & lm.MS_UNBINDABLE:
        propagation = lm.MS_PRIVATE | lm.MS_REC  # we still have to bind the root; `enter` sets what was asked
    lm.mount("", "/", flags=propagation)
    if not os.path.isdir(path):
        raise SpecError(f"root.path: not a directory in the guest: {path}")
    if propagation & lm.MS_SHARED:
        lm.mount("", _mount_point_of(path), flags=lm.MS_PRIVATE)  # pivot_root(2) refuses a shared parent
    lm.mount(path, path, flags=lm.MS_BIND | lm.MS_REC)
    if propagation & lm.MS_SHARED:
        lm.mount("", path, flags=lm.MS_PRIVATE)
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    late = mount_all(path, root, spec.get("mounts") or [])
    if not _dev_is_bound(spec):
        _make_devices(path, root, linux.get("devices") or [], ahead)
        _make_links(root)
    if late and (spec.get("process") or {}).get("terminal"):
        os.close(in_root.file(root, "/dev/console"))
    make_read_only(late)
    _mask(path, root, linux.get("maskedPaths") or [])
    _make_read_only(root, linux.get("readonlyPaths") or [])
    return root


def enter(root: int, spec: dict[str, Any]) -> None:
    """pivot_root into `root`, drop the old root, make the working directory, apply root.readonly."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(root)
    lm.pivot_root(".", ".")
    os.fchdir(old)  # `.` is still the new root, under the old one
    os.close(old)
    lm.mount("", ".", flags=lm.MS_SLAVE | lm.MS_REC)  # the unmount below must not travel to the guest
    lm.unmount(".", lm.MNT_DETACH)
    os.chdir("/")
    propagation = _root_propagation(spec.get("linux") or {})
    if propagation:
        lm.mount("", "/", flags=propagation)
    cwd = str((spec.get("process") or {}).get("cwd") or "/")
    if not cwd.startswith("/"):
        raise SpecError(f"process.cwd: not an absolute path: {cwd}")
    try:
        os.makedirs(cwd, 0o755, exist_ok=True)
    except OSError as error:
        raise GuestError(f'mkdir cwd ("{cwd}") set in config.json failed: {describe(error)}') from error
    if (spec.get("root") or {}).get("readonly"):
        lm.set_attributes(-100, add=lm.MOUNT_ATTR_RDONLY, recursive=False, path="/")


def open_terminal(root: int) -> tuple[int, int]:
    """(master, slave) of a new pseudo-terminal of the devpts in `root`; its slave is also bound to
    /dev/console.
    """
    master = in_root.open_file(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    terminal.unlock(master)
    slave = terminal.peer(master, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    node = in_root.find(root, f"/dev/pts/{terminal.number(master)}")
    tree = lm.open_tree("", at=node, recursive=False)
    attach(tree, in_root.file(root, "/dev/console"))
    os.close(tree)
    os.close(node)
    return master, slave


def _root_propagation(linux: dict[str, Any]) -> int:
    name = str(linux.get("rootfsPropagation") or "")
    if name and name not in PROPAGATION:
        raise SpecError(f"linux.rootfsPropagation: unknown value: {name}")
    return PROPAGATION[name] | lm.MS_REC if name else 0


def _mount_point_of(path: str) -> str:
    """The mount point that `path` lies on: the nearest parent on another device or being a mount point
    itself.
    """
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def _dev_is_bound(spec: dict[str, Any]) -> bool:
    for entry in spec.get("mounts") or []:
        if in_root.clean(str(entry.get("destination", ""))) == "/dev":
            options = entry.get("options") or []
            return entry.get("type") == "bind" or "bind" in options or "rbind" in options
    return False


def _make_devices(scratch: str, root: int, devices: list[dict[str, Any]], ahead: dict[int, int]) -> None:
    """The default devices and those of linux.devices, which win over a default of the same path."""
    wanted: dict[str, tuple[dict[str, Any], int]] = {}
    for path, major, minor in _DEFAULT_DEVICES:
        default = {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}
        wanted[path] = default, -1
    for index, device in enumerate(devices):
        wanted[in_root.clean(str(device.get("path") or ""))] = device, ahead.get(index, -1)
    for path, (device, node) in wanted.items():
        if path in ("/dev/ptmx", "/dev/console"):
            continue
        try:
            _make_device(scratch, root, path, device, node)
        except OSError as error:
            raise GuestError(
                f"creating device node {path}: {describe(error)}", code="device-failed"
            ) from error


def _make_device(scratch: str, root: int, path: str, device: dict[str, Any], node: int) -> None:
    """In its place, or bound there: `node`, if it was made ahead."""
    parent, name = in_root.parent_of(root, path)
    try:
        nodes.make(parent, name, device)
    except FileExistsError:
        pass  # as runc: what the image has stays
    except PermissionError:
        tree = node if node >= 0 else _free_node(scratch, path, device)
        attach(tree, in_root.file(root, path))
        os.close(tree)
    finally:
        os.close(parent)


def _free_node(scratch: str, path: str, device: dict[str, Any]) -> int:
    """A node for a place that can have none, such as a shared root file system, which is the host's: made on
    a tmpfs of its own. In a user namespace, which cannot mknod, it is the guest's node of that path.
    """
    lm.mount("tmpfs", scratch, "tmpfs", lm.MS_NOSUID | lm.MS_NOEXEC, "size=4k,nr_inodes=2,mode=700")
    try:
        home = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            nodes.make(home, "node", device)
            return lm.open_tree("node", at=home, recursive=False)
        finally:
            os.close(home)
    except PermissionError:
        return lm.open_tree(path, recursive=False)
    finally:
        lm.unmount(scratch, lm.MNT_DETACH)


def _make_links(root: int) -> None:
    parent = in_root.directory(root, "/dev")
    try:
        for path, target in _LINKS:
            try:
                os.symlink(target, os.path.basename(path), dir_fd=parent)
            except FileExistsError:
                pass
        try:
            if os.readlink("ptmx", dir_fd=parent) != "pts/ptmx":
                os.unlink("ptmx", dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError:
            os.unlink("ptmx", dir_fd=parent)  # the image has something else there
        try:
            os.symlink("pts/ptmx", "ptmx", dir_fd=parent)
        except FileExistsError:
            pass
    finally:
        os.close(parent)


def _mask(scratch: str, root: int, paths: list[str]) -> None:
    """Hide paths: an empty read-only tmpfs over a directory, /dev/null over anything else; missing ones
    are fine.
    """
    for path in paths:
        try:
            target = in_root.find(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if in_root.is_directory(target):
            tree = detached(scratch, "tmpfs", "tmpfs", lm.MS_RDONLY, "nr_blocks=1,nr_inodes=1")
        else:
            tree = lm.open_tree("/dev/null", recursive=False)
        attach(tree, target)
        os.close(tree)


def _make_read_only(root: int, paths: list[str]) -> None:
    """Bind each path on itself, read-only with everything below; missing ones are fine."""
    for path in paths:
        try:
            target = in_root.find(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        tree = lm.open_tree("", at=target, recursive=True)
        lm.set_attributes(tree, add=lm.MOUNT_ATTR_RDONLY, recursive=True)
        attach(tree, target)
        os.close(tree)
