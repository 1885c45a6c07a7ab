"""What a caller of the library says, as the values that the rooms below take."""

from __future__ import annotations

import os
from contextlib import contextmanager

from bufferzone import state
from bufferzone.errors import CallerError, HostError, UsageError
from bufferzone.workload import from_image, place
from bufferzone.workload.wish import NETWORKS, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import IO, Any

    Stdin = str | bytes | IO[Any] | None
    Path = str | os.PathLike[str]

_MIB = 1 << 20
_MOST_MIB = 1 << 30


def wish_of(
    image: Path | None,
    command: Sequence[str] | None,
    *,
    memory_mib: int,
    cpus: float,
    pids: int,
    network: str,
    ports: Mapping[int, int] | Sequence[str],
    volumes: Mapping[Path, str] | None,
    egress: Sequence[str] | None,
    env: Mapping[str, str] | None,
    user: str,
    cwd: str,
    read_only: bool,
    disk: bool,
    labels: Mapping[str, str] | None,
    kvm: str,
    pull: str,
    progress: Callable[[str], None],
    inside: str = "",
) -> Wish:
    """The wish for a sandbox, or for a container `inside` one, its image pulled; raises `UsageError`,
    `CallerError` for what is not there, and as `images.fetch.get`.
    """
    if network not in NETWORKS:
        raise UsageError(f"network: expected {', '.join(NETWORKS)}, got {network!a:.60}")
    check_limits(memory_mib, cpus, pids)
    check_command(command)
    if any(name.startswith("bufferzone.") for name in labels or {}):
        raise UsageError("labels: names that begin with bufferzone. are reserved")
    if disk and image is None:
        raise UsageError("disk: the host's own programs are not packed", hint="name an image or a directory")
    directory = _directory(image)
    found = Wish(
        command or (),
        idle=not command,
        rootfs="" if inside else directory,
        memory_bytes=memory_mib * _MIB,
        cpus=float(cpus),
        pids=pids,
        network=network,
        publish=_publish(ports),
        mounts=[_volume(source, target) for source, target in (volumes or {}).items()],
        egress=egress,
        env=[f"{name}={value}" for name, value in (env or {}).items()],
        user=user,
        cwd=cwd,
        read_only=read_only,
        disk=disk,
        annotations={**(labels or {}), **({"bufferzone.kvm": kvm} if kvm else {})},
        inside=inside,
    )
    if image is not None and not found.rootfs:
        from bufferzone.images import fetch  # most have none

        # a directory is no disk there: it is below an overlay, as the layers of an image are
        found.image = fetch.get(directory or os.fspath(image), pull=pull, report=fetch.Report(progress))
        from_image.fill(found)
    return found


def check_command(command: Sequence[str] | None) -> None:
    """Raises `UsageError`."""
    if isinstance(command, str):
        raise UsageError("command: expected a list of strings", hint='["sh", "-c", script]')


def check_limits(memory_mib: int, cpus: float, pids: int) -> None:
    """Raises `UsageError` for what is no limit."""
    if not 0 <= memory_mib <= _MOST_MIB or not 0 <= cpus <= 1024 or pids < 0:
        raise UsageError("memory_mib, cpus and pids: expected a limit, or 0 for none")


def _directory(image: Path | None) -> str:
    """The directory of a root file system; empty for the host's programs, and for a name of an image, which
    means the same wherever one is.
    """
    if image is None or (isinstance(image, str) and not image.startswith(("/", "./", "../"))):
        return ""
    path = state.absolute(os.fspath(image))
    if not os.path.isdir(path):
        raise CallerError(f"no such directory: {path!a:.80}", code="image-unknown")
    return path


def _publish(ports: Mapping[int, int] | Sequence[str]) -> list[str]:
    if isinstance(ports, str):
        raise UsageError("ports: expected {host: guest}, or a list of strings")
    if hasattr(ports, "items"):
        return [f"{host}:{guest}" for host, guest in ports.items()]
    return list(ports)


def _volume(source: Path, target: str) -> dict[str, Any]:
    path = state.absolute(os.path.expanduser(os.fspath(source)))
    inside, _, option = target.partition(":")
    if not inside.startswith("/") or option not in ("", "ro", "rw"):
        raise UsageError(
            f"volumes: expected an absolute path inside, with :ro or nothing, got {target!a:.80}"
        )
    if not os.path.exists(path):
        raise CallerError(f"volumes: no such file or directory: {path!a:.80}", code="no-volume")
    options = ["rbind", *(["rro"] if option == "ro" else [])]
    return {"destination": inside, "type": "bind", "source": path, "options": options}


@contextmanager
def stdio(at: place.Place) -> Iterator[list[int]]:
    """Descriptors for the command of a sandbox: nothing to read, and its logs in its place, which is removed
    where they cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    fds: list[int] = []
    try:
        fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        for name in (place.OUT, place.ERR):
            fds.append(os.open(os.path.join(at.path, name), flags, 0o600))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        at.remove()
        raise HostError(f"cannot open {error.filename}: {error.strerror}", code="no-output") from error
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def input_of(stdin: Stdin) -> bytes | int | None:
    """What a run reads: bytes, a descriptor, or nothing; raises `UsageError`."""
    if stdin is None:
        return None
    if isinstance(stdin, str):
        return stdin.encode()
    if isinstance(stdin, (bytes, bytearray, memoryview)):
        return bytes(stdin)
    try:
        return stdin.fileno()
    except (AttributeError, OSError) as error:
        raise UsageError("stdin: expected text, bytes or an open file") from error
