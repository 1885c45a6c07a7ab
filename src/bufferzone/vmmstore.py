"""VMM programs that no distribution packages: where they lie, which versions are known, how one is taken in.

A person brings one (`bz setup --vmm NAME PATH`); what was taken in lies beside the guest images and is found
before what the machine has by itself. Nothing is downloaded. Refuses: a version that nobody has tried.
"""

from __future__ import annotations

import os
import stat

from bufferzone import allowlists, config, jail, programs, state
from bufferzone.errors import HostError, UsageError
from bufferzone.linux import landlock
from bufferzone.record import Record

#: seconds that a program may take to say its version
_ANSWER_S = 20.0
_MOST_SAID, _CHUNK = 4096, 1 << 20


class Known(Record):
    """A VMM that may be brought: its name for people, the versions that were tried, where releases are."""

    label: str
    versions: tuple[str, ...]
    releases: str


KNOWN = {
    "firecracker": Known(
        label="Firecracker",
        versions=("1.12",),  # the format of its snapshots and its API change with the second number
        releases="https://github.com/firecracker-microvm/firecracker/releases",
    )
}
_PLACES = ("/usr/local/bin", "/usr/bin")


def directory() -> str:
    """Where what was taken in lies: beside the images."""
    return os.path.join(os.path.dirname(config.default_image_store()), "vmm")


def find(name: str) -> str:
    """The program of the VMM `name`; raises HostError `vmm-missing`."""
    path = programs.find(name, (directory(), *_PLACES))
    if not path:
        raise HostError(f"program not found: {name}", hint=hint(name), code="vmm-missing")
    return path


def hint(name: str) -> str:
    """How to get one that is known."""
    known = KNOWN[name]
    return f"bz setup --vmm {name} PATH takes one in; {', '.join(known.versions)} from {known.releases}"


def unsupported(name: str, version: str) -> str:
    """Why the VMM's `version` (`1.12.1`) cannot be used; empty when it can."""
    known = KNOWN[name]
    if ".".join(version.split(".")[:2]) in known.versions:
        return ""
    tried = ", ".join(known.versions)
    return f"{known.label} {version or 'of no known version'} is not one that was tried: {tried}"


def take(name: str, path: str) -> tuple[str, str]:
    """Copy the program at `path` into the store if it is a version that is known: (where it lies, version).

    Raises `UsageError` for a name that is none, `HostError` for all else; then the store is as it was.
    """
    import tempfile  # no start needs it

    if name not in KNOWN:
        raise UsageError(f"not a VMM that is brought: {name}", hint=f"one of: {', '.join(KNOWN)}")
    store = directory()
    try:
        os.makedirs(store, 0o755, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".taking-", dir=store) as aside:
            copy = os.path.join(aside, name)
            _copy(path, copy)
            # asked of the copy: what was asked is what runs
            version = _version(copy, KNOWN[name].label)
            if problem := unsupported(name, version):
                raise HostError(f"{path}: {problem}", hint=hint(name), code="vmm-version")
            os.replace(copy, os.path.join(store, name))
    except OSError as error:
        raise HostError(
            f"cannot take in {path}: {error.strerror}: {error.filename}", code="vmm-store"
        ) from error
    return os.path.join(store, name), version


def _copy(source: str, target: str) -> None:
    """A program's bytes, readable and executable for all; raises OSError, `HostError`."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or file.read(4) != b"\x7fELF":
            raise HostError(f"not a program: {source}", code="vmm-store")
        file.seek(0)
        with open(target, "xb") as copy:
            while chunk := file.read(_CHUNK):
                copy.write(chunk)
            os.fchmod(copy.fileno(), 0o755)
            copy.flush()
            os.fsync(copy.fileno())


def _version(program: str, label: str) -> str:
    """What `program --version` says after its name, asked in a jail; empty when that is something else."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb") as said:
        try:
            with jail.allocate_uid(state.lease_root()) as uids:
                child = jail.start([program, "--version"], _jail(program, uids.vmm, writer))
                with child:
                    child.wait_exit(_ANSWER_S)
        finally:
            os.close(writer)
        first = said.read(_MOST_SAID).decode("ascii", "replace").partition("\n")[0]
    name, _, version = first.partition(" v")
    return "".join(c for c in version if c.isalnum() or c in ".-")[:40] if name == label else ""


def _jail(program: str, uid: int, log_fd: int) -> jail.Jail:
    libraries, links = jail.library_view()
    return jail.Jail(
        name=os.path.basename(program),
        uid=uid,
        gid=uid,
        log_fd=log_fd,
        calls=allowlists.FIRECRACKER,
        binds=(*libraries, jail.JailBind(source=program, target=program)),
        links=links,
        devices=("null", "urandom"),
        restricted=landlock.Rules(writable=("/dev/null",)),
    )
