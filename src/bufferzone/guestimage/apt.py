"""The distribution's packages as input: name, fetch into a cache, read. Installs nothing, needs no root.

The only module of `guestimage/` that starts programs: apt-get, apt-cache, dpkg-deb, a decompressor, a
compiler, the guest's own Python. apt has verified the index that the SHA-256s come from; every use of a
cached file verifies it again.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator

from bufferzone.errors import HostError
from bufferzone.record import Record

Progress = Callable[[str], None]
Lines = Iterator[str]
_URI_LINE = re.compile(r"^'[^']+' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")
_FILE_NAME = re.compile(r"^(?P<name>[a-z0-9][a-z0-9+.-]*)_(?P<version>[A-Za-z0-9.+~%-]+)_[a-z0-9]+\.deb$")


class Package(Record):
    """One binary package, pinned: what apt chose, and the hash that its file must have."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


def run(
    argv: list[str], *, cwd: str | None = None, env: dict[str, str] | None = None, package: str = ""
) -> str:
    """Standard output of a program that must succeed; raises `HostError` with the last line of its stderr."""
    return pipe(argv, b"", cwd=cwd, env=env, package=package).decode("utf-8", "replace")


def pipe(
    argv: list[str],
    data: bytes,
    *,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    package: str = "",
) -> bytes:
    """Feed `data` to a program and return what it writes; errors as for `run`."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"} if env is None else env
    try:
        done = subprocess.run(argv, input=data, capture_output=True, cwd=cwd, env=environment, check=False)
    except FileNotFoundError as error:
        raise _missing(argv[0], package) from error
    if done.returncode:
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise HostError(f"{os.path.basename(argv[0])} failed: {reason}", code="program-failed")
    return done.stdout


def lines(argv: list[str], *, cwd: str, env: dict[str, str]) -> Lines:
    """What a program says on stdout, as it comes; ends it where nobody listens any more.

    Raises `HostError` with the first line of its stderr that tells of an error, else the last one.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=cwd, env=env, text=True
        )
        with process:
            try:
                yield from process.stdout or ()
            except GeneratorExit:
                process.terminate()
                raise
        if process.returncode:
            errors.seek(0)
            said = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
            reason = next((line for line in said if "error" in line.lower()), said[-1] if said else "")
            reason = reason.strip() or f"exit status {process.returncode}"
            raise HostError(f"{os.path.basename(argv[0])} failed: {reason}", code="program-failed")


def _missing(program: str, package: str) -> HostError:
    hint = f"run: apt-get install {package}" if package else "the guest image is built from Debian packages"
    return HostError(f"{program} is not installed", hint=hint, code="program-missing")


def _options() -> list[str]:
    # apt would drop to user _apt, which cannot write into our cache, and complain about it
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    proxy = []
    for name in (
        "http",
        "https",
    ):  # the environment is rebuilt from nothing, a proxy is the one thing to carry over
        value = os.environ.get(f"{name}_proxy", "")
        proxy += ["-o", f"Acquire::{name}::Proxy={value}"] if value else []
    return ["-q", *sandbox, *proxy]


def needed_by(package: str, pattern: str) -> list[str]:
    """The packages that `package` needs (Depends, Pre-Depends) today and whose whole name fits `pattern`.

    How a name with a version in it is found: linux-image-cloud-amd64 needs linux-image-6.1.0-56-cloud-amd64.
    """
    try:
        text = run(["apt-cache", "show", "--no-all-versions", package])
    except HostError as error:
        raise _unknown(error) from error
    lines = re.findall(r"^(?:Pre-)?Depends: (.*)", text, re.MULTILINE)
    names = (name for line in lines for name in re.findall(r"(?:^|[,|] )([a-z0-9][a-z0-9+.-]*)", line))
    return [name for name in names if re.fullmatch(pattern, name)]


def one_needed_by(package: str, pattern: str) -> str:
    """The first of `needed_by`; raises `HostError` (`package-unknown`) when there is none."""
    for name in needed_by(package, pattern):
        return name
    raise HostError(
        f"package {package} needs no {pattern}", hint="run: apt-get update", code="package-unknown"
    )


def resolve(names: list[str]) -> list[Package]:
    """What apt would download today for `names`, sorted by name; reads apt's lists only, no network."""
    try:
        # apt names no file that lies in the working directory already
        with tempfile.TemporaryDirectory(prefix="bufferzone-apt-") as empty:
            text = run(["apt-get", *_options(), "download", "--print-uris", *names], cwd=empty)
    except HostError as error:
        raise _unknown(error) from error
    found = []
    for line in text.splitlines():
        uri = _URI_LINE.match(line.strip())
        named = _FILE_NAME.match(uri["file"]) if uri else None
        if uri and named:
            version = named["version"].replace("%3a", ":")
            size, sha256 = int(uri["size"]), uri["sha256"]
            found.append(
                Package(name=named["name"], version=version, file=uri["file"], size=size, sha256=sha256)
            )
    missing = sorted(set(names) - {package.name for package in found})
    if missing:
        raise HostError(
            f"apt offers no download for: {', '.join(missing)}",
            hint="run: apt-get update",
            code="package-unknown",
        )
    return sorted(found, key=lambda package: package.name)


def _unknown(error: HostError) -> HostError:
    if error.code == "program-missing":
        return error
    return HostError(error.message, hint="run: apt-get update", code="package-unknown")


def missing(packages: Iterable[Package], cache: str) -> list[Package]:
    """The packages whose file is not in the cache, or is not the pinned one."""
    return [package for package in packages if not _is_intact(package, os.path.join(cache, package.file))]


def _is_intact(package: Package, path: str) -> bool:
    try:
        if os.path.getsize(path) != package.size:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False


def fetch(packages: list[Package], cache: str, progress: Progress) -> None:
    """Bring every package into the cache; afterwards each file is there and has its pinned hash.

    Raises `HostError`: `download-failed` for apt's reason, `download-damaged` when a file is not what was
    pinned.
    """
    wanted = missing(packages, cache)
    if not wanted:
        return
    megabytes = sum(package.size for package in wanted) / 1e6
    progress(f"downloading {len(wanted)} packages, {megabytes:.0f} MB")
    with tempfile.TemporaryDirectory(prefix="partial-", dir=cache) as directory:
        names = [f"{package.name}={package.version}" for package in wanted]
        try:
            run(["apt-get", *_options(), "download", *names], cwd=directory)
        except HostError as error:
            raise HostError(
                f"download failed: {error.message}", hint=error.hint, code="download-failed"
            ) from error
        for package in wanted:
            path = os.path.join(directory, package.file)
            if not _is_intact(package, path):
                raise HostError(f"the download of {package.name} is damaged", code="download-damaged")
            os.replace(path, os.path.join(cache, package.file))


def contents(package: Package, cache: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every regular file (with its bytes) and link of a package; paths absolute, in the package's order."""
    path = os.path.join(cache, package.file)
    argv = ["dpkg-deb", "--fsys-tarfile", path]
    try:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise _missing("dpkg-deb", "dpkg") from error
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    member.name = "/" + member.name.removeprefix("./")
                    file = archive.extractfile(member) if member.isreg() else None
                    if file is not None or member.issym():
                        yield member, file.read() if file is not None else b""
        except tarfile.TarError as error:
            raise HostError(
                f"package {package.file} is unreadable: {error}", code="package-damaged"
            ) from error
        finally:
            process.kill()  # a reader that stops early must not leave dpkg-deb on a full pipe
