"""Builds the Debian package: one directory tree, then dpkg-deb(1). See scripts/package.

Reproducible: every time is SOURCE_DATE_EPOCH's, else the last commit's; every mode and owner is said.
Source: deb(5), deb-control(5), the Debian Policy Manual.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(HERE, "scripts"))
import command_tables  # noqa: E402
import completion  # noqa: E402
import library  # noqa: E402
import manual_pages  # noqa: E402
from install_programs import DROP_IN, ENTRIES  # noqa: E402

from bufferzone import __version__  # noqa: E402
from bufferzone.errors import HostError  # noqa: E402

CONTROL = ("postinst", "prerm", "postrm", "triggers")
# The link is followed here, once, so that a process keeps its version: what it imports later, and the
# programs it starts, lie beside what it began with.
PROGRAM = """#!/usr/bin/python3 -IS
import sys
from posix import readlink
try:
    sys.path.insert(0, "/usr/lib/bufferzone/" + readlink("/usr/lib/bufferzone/current"))
except FileNotFoundError:
    sys.exit("{name}: the package is not fully installed (hint: dpkg --configure bufferzone)")
from {module} import main
sys.exit({call})
"""


KERNEL_COPYRIGHT = """Linux, from Debian's source package linux, compiled with options of bufferzone
(the file config beside it). Copyright: its authors. License: GPL-2, see
/usr/share/common-licenses/GPL-2. Source: apt-get source linux-source-6.12, in the version of this package.
"""
KERNEL_CONTROL = """Package: bufferzone-kernel
Version: {version}
Architecture: amd64
Maintainer: bufferzone maintainers <bufferzone@packages.invalid>
Installed-Size: {size}
Section: admin
Priority: optional
Enhances: bufferzone
Description: kernel of the lean guest of bufferzone, compiled
 What "bz setup --guest lean" would compile from Debian's linux-source, for
 machines that have no compiler. It runs in virtual machines alone.
"""


def main() -> int:
    words = [word for word in sys.argv[1:] if word != "--kernel"]
    place = words[0] if words else os.path.join(HERE, "build")
    try:
        print(build_kernel(place) if "--kernel" in sys.argv else build(place))
    except HostError as error:
        sys.exit(f"package: {error.line()}")
    return 0


def build_kernel(place: str) -> str:
    """Make the package of the lean kernel that was compiled on this machine; returns its path. The same
    kernel gives the same bytes. Raises `HostError` where there is none.
    """
    from bufferzone.guestimage import build as image
    from bufferzone.guestimage import lean, store

    directory = store.default_store()
    row = store.read_index(directory).get("recipes", {}).get(lean.Lean.name, {})
    version, files = lean.compiled(os.path.join(directory, "cache"), image.pinned_packages(row))
    named = {f"{lean.PACKAGED[1:]}/{path}": data for path, data in files.items()}
    named["usr/share/doc/bufferzone-kernel/copyright"] = KERNEL_COPYRIGHT.encode()
    size = sum(-(-len(data) // 1024) for data in files.values())
    os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bufferzone-deb-") as work:
        for path, data in named.items():
            _write(os.path.join(work, path), data)
        _write(f"{work}/DEBIAN/control", KERNEL_CONTROL.format(version=version, size=size).encode())
        _write_sums(f"{work}/DEBIAN", named)
        _settle(work, 0)
        return _pack(work, os.path.join(place, f"bufferzone-kernel_{version}_amd64.deb"), 0)


def build(place: str, version: str = "") -> str:
    """Make the package in the directory `place`; returns its path. `version` replaces the one found out."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or _newest())
    version = version or package_version(epoch)
    os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bufferzone-deb-") as work:
        files = contents(version, epoch)
        for path, data in files.items():
            _write(os.path.join(work, path), data)
        size = sum(-(-len(data) // 1024) for data in files.values())
        _write_control(os.path.join(work, "DEBIAN"), files, version, size)
        _settle(work, epoch)
        return _pack(work, os.path.join(place, f"bufferzone_{version}_amd64.deb"), epoch)


def _pack(work: str, path: str, epoch: int) -> str:
    argv = ["dpkg-deb", "--root-owner-group", "--uniform-compression", "-Zxz", "--build", work, path]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    return path


def package_version(epoch: int) -> str:
    """The library's own version; between releases one that sorts before it, by the time of the commit."""
    head = _git("rev-parse", "HEAD")
    if not head or "v" + __version__ in _git("tag", "--points-at", "HEAD").split():
        return f"{__version__}-1"
    when = time.strftime("%Y%m%d.%H%M%S", time.gmtime(epoch))
    changed = ".changed" if _git("status", "--porcelain", "--", "src", "scripts", "config") else ""
    return f"{__version__}~git{when}.{head[:7]}{changed}-1"


def _git(*words: str) -> str:
    """What git says; empty where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _newest() -> int:
    return int(os.stat(os.path.join(HERE, "CHANGELOG.md")).st_mtime)


def contents(version: str, epoch: int) -> dict[str, bytes]:
    """Every file of the package by its path without the first slash."""
    shared = "usr/share/bufferzone"
    files = {
        f"{shared}/{path}": data for path, data in library.source_files(os.path.join(HERE, "src")).items()
    }
    for name, (module, call) in ENTRIES.items():
        files[f"usr/bin/{name}"] = PROGRAM.format(name=name, module=module, call=call).encode()
    for name in ("library.py", "still_running.py"):
        files[f"{shared}/{name}"] = _read("scripts", name)
    files[f"etc/containers/{DROP_IN}"] = _read("config", DROP_IN)
    files["usr/lib/tmpfiles.d/bufferzone.conf"] = _read("scripts/debian", "tmpfiles")
    files["usr/share/lintian/overrides/bufferzone"] = _read("scripts/debian", "lintian-overrides")
    for name, page in manual_pages.pages(epoch).items():
        files[f"usr/share/man/man{name[-1]}/{name}.gz"] = _packed(page.encode())
    for program in command_tables.programs():
        name = program.name
        files[f"usr/share/bash-completion/completions/{name}"] = completion.bash(program).encode()
        files[f"usr/share/zsh/vendor-completions/_{name}"] = completion.zsh(program).encode()
        files[f"usr/share/fish/vendor_completions.d/{name}.fish"] = completion.fish(program).encode()
    return {**files, **_documents(version, epoch)}


def _documents(version: str, epoch: int) -> dict[str, bytes]:
    place = "usr/share/doc/bufferzone"
    files = {f"{place}/copyright": _read("scripts/debian", "copyright")}
    for name in sorted(os.listdir(os.path.join(HERE, "docs"))):
        if name.endswith(".md"):
            files[f"{place}/{name}"] = _read("docs", name)
    for name in ("README.md", "SECURITY.md"):
        files[f"{place}/{name}"] = _read("", name)
    files[f"{place}/changelog.gz"] = _packed(_read("", "CHANGELOG.md"))
    when = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(epoch))
    files[f"{place}/changelog.Debian.gz"] = _packed(
        f"bufferzone ({version}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n"
        f" -- bufferzone maintainers <bufferzone@packages.invalid>  {when}\n".encode()
    )
    return files


def _write_control(directory: str, files: dict[str, bytes], version: str, size: int) -> None:
    text = _read("scripts/debian", "control").decode()
    _write(f"{directory}/control", text.replace("@VERSION@", version).replace("@SIZE@", str(size)).encode())
    for name in CONTROL:
        _write(f"{directory}/{name}", _read("scripts/debian", name))
    _write(
        f"{directory}/conffiles", "".join(f"/{path}\n" for path in files if path.startswith("etc/")).encode()
    )
    _write_sums(directory, files)


def _write_sums(directory: str, files: dict[str, bytes]) -> None:
    sums = (f"{hashlib.md5(data).hexdigest()}  {path}\n" for path, data in sorted(files.items()))
    _write(f"{directory}/md5sums", "".join(sums).encode())


def _settle(work: str, epoch: int) -> None:
    """Modes whatever the umask is, and one time for everything."""
    os.chmod(work, 0o755)
    for directory, folders, names in os.walk(work):
        for name in [*folders, *names]:
            path = os.path.join(directory, name)
            runs = name in folders or "/usr/bin/" in path or name in ("postinst", "prerm", "postrm")
            os.chmod(path, 0o755 if runs else 0o644)
            os.utime(path, (epoch, epoch))


def _read(*path: str) -> bytes:
    with open(os.path.join(HERE, *path), "rb") as file:
        return file.read()


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def _packed(data: bytes) -> bytes:
    """As gzip -9n writes it: without a name or a time."""
    return gzip.compress(data, 9, mtime=0)


if __name__ == "__main__":
    if not shutil.which("dpkg-deb"):
        sys.exit("package: dpkg-deb is missing (hint: apt-get install dpkg)")
    sys.exit(main())
