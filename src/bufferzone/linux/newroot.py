"""A root of one's own: a small read-only tmpfs with given trees, devices and links, entered with
pivot_root(2)."""

from __future__ import annotations

import os
import stat

from bufferzone.linux import mount as mnt
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Node(Record):
    """A character device: name in /dev, a detached copy of the host's node, its number, an owner for it
    alone."""

    name: str
    tree: int
    number: int
    owner: tuple[int, int] | None


class Text(Record):
    """A small file that its owner, and nobody else, may read."""

    path: str
    text: bytes
    owner: tuple[int, int]


def enter(
    trees: Iterable[tuple[int, str]],
    nodes: Iterable[Node],
    links: Iterable[tuple[str, str]],
    texts: Iterable[Text] = (),
) -> None:
    """Build the root and move into it; nothing of the old root stays reachable by path.

    `trees` are detached mounts (open_tree(2)) and where they go; they and the trees of `nodes` are closed.
    The caller has a mount namespace of its own, without propagation to others. Raises OSError; then only exit
    is left.
    """
    # built on /proc: a directory that every host has; the cover is in our namespace alone
    quiet = mnt.MS_NOSUID | mnt.MS_NOEXEC
    mnt.mount("tmpfs", "/proc", "tmpfs", quiet | mnt.MS_NODEV, "size=256k,nr_inodes=256,mode=755")
    os.chdir("/proc")
    for link, target in links:
        os.makedirs(os.path.dirname("." + link), mode=0o755, exist_ok=True)
        os.symlink(target, "." + link)
    for text in texts:
        os.makedirs(os.path.dirname("." + text.path), mode=0o755, exist_ok=True)
        with open("." + text.path, "wb") as file:
            file.write(text.text)
            os.fchmod(file.fileno(), 0o400)
            os.fchown(file.fileno(), *text.owner)
    for fd, target in trees:
        _attach(fd, "." + target)
    os.mkdir("dev", 0o755)
    mnt.mount("tmpfs", "dev", "tmpfs", quiet, "size=4k,nr_inodes=16,mode=755")
    for node in nodes:
        _make(node)
    mnt.pivot_root(".", ".")
    mnt.unmount(".", mnt.MNT_DETACH)
    os.chdir("/")
    for path in ("/dev", "/"):
        mnt.set_attributes(-1, add=mnt.MOUNT_ATTR_RDONLY, recursive=False, path=path)


def _attach(fd: int, target: str) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    mnt.move_mount(fd, target)
    os.close(fd)


def _make(node: Node) -> None:
    """A node of our own, as Firecracker's jailer makes: owner and mode of the host's /dev/kvm do not matter
    then.

    Where mknod(2) is refused (in a user namespace) the host's node is bound instead.
    """
    path = f"dev/{node.name}"
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, node.number)
    except PermissionError:
        _attach(node.tree, path)
        return
    os.close(node.tree)
    if node.owner is not None:
        os.chown(path, *node.owner)
    else:
        os.chmod(path, 0o666)
