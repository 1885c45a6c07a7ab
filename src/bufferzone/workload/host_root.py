"""A root file system without an image: the host's programs, and nothing of the host's own data.

/usr is the host's, with an overlay that is thrown away, and so are two directories of /etc that hold links
into it, hundreds of them: a copy of each would take longer than all else of a start. The rest of /etc is what
programs need to run (who there is, names, libraries) and no configuration or secret of the host; home
directories are empty.
"""

from __future__ import annotations

import os

from bufferzone.errors import HostError
from bufferzone.linux import filesystem, identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_OVERLAY = 0x794C7630  # an overlay cannot write to an overlay: a host that is a container itself
_MOST_DATA = 4096
_DIRECTORIES = """
dev etc etc/ssl home media mnt opt proc run srv sys usr var var/cache var/lib var/log var/lib/misc
"""
#: what a Debian program finds its parts by
_FILES = "ld.so.cache ld.so.conf mime.types protocols services ssl/openssl.cnf"
#: directories that are the host's own, and what their overlays are called in the sandbox's place
_TREES = {"usr": "", "etc/alternatives": "-alternatives", "etc/ssl/certs": "-certs"}
_PASSWD = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUP = "root:x:0:\ntty:x:5:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
_RESOLVERS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")


def make(place: str, *, network: bool, hostname: str, read_only: bool) -> list[dict[str, Any]]:
    """Fill PLACE/rootfs, a new directory, and return the mounts that belong to it. Raises `HostError`.

    `network`: names are looked up where the host looks them up. `read_only`: no overlay.
    """
    root = os.path.join(place, "rootfs")
    try:
        os.mkdir(root, 0o755)
        for name in _DIRECTORIES.split():
            os.mkdir(f"{root}/{name}", 0o755)
        os.mkdir(f"{root}/root", 0o700)
        for name in ("tmp", "var/tmp"):
            os.mkdir(f"{root}/{name}")
            os.chmod(f"{root}/{name}", 0o1777)
        _make_etc(root, network=network, hostname=hostname)
        writable = not read_only and _may_overlay(place)
        return [*_trees(place, root, writable=writable), *_beside_usr(root)]
    except OSError as error:
        text = f"cannot make a root file system: {error.filename}: {error.strerror}"
        raise HostError(text, code="root-failed") from error


def _make_etc(root: str, *, network: bool, hostname: str) -> None:
    etc = f"{root}/etc"
    for name in _FILES.split():
        if os.path.isfile(f"/etc/{name}"):
            _copy_file(f"/etc/{name}", f"{etc}/{name}")
    _copy_directory("/etc/ld.so.conf.d", f"{etc}/ld.so.conf.d")
    for name in ("localtime", "os-release", "mtab"):
        if os.path.islink(f"/etc/{name}"):
            os.symlink(os.readlink(f"/etc/{name}"), f"{etc}/{name}")
    hosts = f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n"
    texts = {
        "passwd": _PASSWD,
        "group": _GROUP,
        "nsswitch.conf": _NSSWITCH,
        "hosts": hosts,
        "hostname": f"{hostname}\n",
        "resolv.conf": resolvers() if network else "",
    }
    for name, text in texts.items():
        with open(f"{etc}/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def _copy_file(source: str, target: str) -> None:
    with open(source, "rb") as there, open(target, "wb") as here:
        here.write(there.read())  # they are small, and shutil brings in `re`


def _copy_directory(source: str, target: str) -> None:
    """Files and links of one directory; what lies deeper stays."""
    os.mkdir(target, 0o755)
    try:
        entries = list(os.scandir(source))
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), f"{target}/{entry.name}")
        elif entry.is_file():
            _copy_file(entry.path, f"{target}/{entry.name}")


def resolvers() -> str:
    """The host's resolv.conf with the name servers that passt reaches: those of IPv4 and not of loopback."""
    kept: list[str] = []
    for path in _RESOLVERS:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = [line for line in file if not line.startswith(("#", ";"))]
        except OSError:
            continue  # a machine has one or the other
        kept = [line for line in lines if not line.startswith("nameserver") or _reachable(line)]
        if any(line.startswith("nameserver") for line in kept):
            break
    return "".join(kept)


def _reachable(line: str) -> bool:
    address = line.removeprefix("nameserver").strip()
    return ":" not in address and not address.startswith("127.")


def _trees(place: str, root: str, *, writable: bool) -> list[dict[str, Any]]:
    """The mounts of those that this host has."""
    found = []
    for name, suffix in _TREES.items():
        if os.path.isdir(f"/{name}"):
            os.makedirs(f"{root}/{name}", 0o755, exist_ok=True)
            found.append(_overlay(place, f"/{name}", suffix) if writable else _bind(f"/{name}"))
    return found


def _overlay(place: str, source: str, suffix: str) -> dict[str, Any]:
    data = {"lowerdir": source, "upperdir": f"{place}/upper{suffix}", "workdir": f"{place}/work{suffix}"}
    for name in ("upperdir", "workdir"):
        os.mkdir(data[name], 0o755)
    options = [f"{name}={_escaped(path)}" for name, path in data.items()]
    if identity.is_namespace_root():
        options.append("userxattr")  # overlayfs.rst: trusted.* is for root of the machine
    return {"destination": source, "type": "overlay", "source": "overlay", "options": options}


def _may_overlay(place: str) -> bool:
    fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        return filesystem.magic_of(fd) != _OVERLAY
    finally:
        os.close(fd)


def overlay_place(place: str, layers: Sequence[str]) -> list[Any]:
    """Type, source and options of an overlay on `layers` (topmost first), what is written lying in `place`.

    Raises `HostError` where no overlay can be written, or for more layers than one mount can name.
    """
    if not _may_overlay(place):
        hint = "image_store on a file system of its own, or bz run --disk"
        raise HostError(f"no overlay can be written in {place}", hint=hint, code="no-overlay")
    options = [
        f"lowerdir={lower(layers)}",
        f"upperdir={_escaped(place)}/upper",
        f"workdir={_escaped(place)}/work",
    ]
    if identity.is_namespace_root():
        options.append("userxattr")
    if len(",".join(options)) >= _MOST_DATA:  # mount(2): a page
        raise _too_many(layers)
    for name in ("upper", "work"):
        os.mkdir(f"{place}/{name}", 0o755)
    return ["overlay", "overlay", options]


def lower(layers: Sequence[str]) -> str:
    """The directories of an overlay as its option has them, topmost first. Raises `HostError` for more than
    one mount can name.
    """
    text = ":".join(_escaped(path) for path in layers)
    if len(text) >= _MOST_DATA - len("lowerdir=") - 1:
        raise _too_many(layers)
    return text


def _too_many(layers: Sequence[str]) -> HostError:
    return HostError(f"the image has more layers than can be mounted: {len(layers)}", code="many-layers")


def _escaped(path: str) -> str:
    return "".join(f"\\{c}" if c in "\\:," else c for c in path)


def _beside_usr(root: str) -> list[dict[str, Any]]:
    """/bin, /lib and so on: the links that they are, or, where they are not, the host's directories."""
    found = []
    for name in sorted(os.listdir("/")):
        if not (name in ("bin", "sbin") or name.startswith("lib")):
            continue
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
        elif os.path.isdir(f"/{name}"):
            os.mkdir(f"{root}/{name}", 0o755)
            found.append(_bind(f"/{name}"))
    return found


def _bind(path: str) -> dict[str, Any]:
    return {"destination": path, "type": "bind", "source": path, "options": ["rbind", "rro"]}
