"""Asks an engine for a container in our runtime, as a person would by its command, and looks where it ran.

The root file system is one program, Debian's static busybox; nothing is pulled. What was made is removed,
whatever comes of it. Starts ctr, docker and systemctl.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile

from bufferzone import programs
from bufferzone.cli.bz.engine_files import NAME, RUNTIME
from bufferzone.errors import HostError

_BUSYBOX = "/bin/busybox"
_ASK = ("/bin/busybox", "uname", "-r")
_TIMEOUT_S = 300.0


def containerd(address: str) -> str:
    """The release of the kernel that a container of containerd's saw. Raises `HostError`."""
    ctr = ["ctr", "-a", address or "/run/containerd/containerd.sock", "-n", "bufferzone-check"]
    with tempfile.TemporaryDirectory(prefix="bufferzone-check-") as directory:
        os.chmod(directory, 0o755)
        for folder in ("bin", "dev", "proc", "sys", "tmp", "run", "etc"):
            os.mkdir(os.path.join(directory, folder))
        _copy(os.path.join(directory, "bin", "busybox"))
        id = f"check-{os.getpid()}"
        return _looked(_run([*ctr, "run", "--rm", "--runtime", RUNTIME, "--rootfs", directory, id, *_ASK]))


def docker(address: str) -> str:
    """The same of Docker's."""
    command = ["docker", *(["--host", address] if address else [])]
    image = f"bufferzone-check-{os.getpid()}"
    _run([*command, "import", "-", image], data=_archive())
    try:
        words = ["run", "--rm", "--runtime", NAME, "--network", "none", image, *_ASK]
        return _looked(_run([*command, *words]))
    finally:
        _run([*command, "rmi", "--force", image])


def tell(unit: str, verb: str) -> bool:
    """Have systemd restart or reload a service that runs; False: it does not run, or not under systemd."""
    if not os.path.isdir("/run/systemd/system"):
        return False
    try:
        _run(["systemctl", "is-active", "--quiet", unit])
    except HostError:
        return False
    _run(["systemctl", verb, unit])
    return True


def _looked(said: bytes) -> str:
    release = said.decode("utf-8", "replace").strip()
    if not release or release == os.uname().release:
        raise HostError(f"the container ran on the host's kernel: {release}", code="node-check")
    return release


def _run(words: list[str], data: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            words, input=data, capture_output=True, timeout=_TIMEOUT_S, check=False, env=programs.ENVIRONMENT
        )
    except FileNotFoundError as error:
        raise HostError(
            f"not found: {words[0]}", hint="install the engine first", code="node-check"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{words[0]} did not end in {_TIMEOUT_S:g} s", code="node-check") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise HostError(f"{words[0]} failed: {reason}", code="node-check")
    return done.stdout


def _copy(path: str) -> None:
    try:
        shutil.copyfile(_BUSYBOX, path)
    except FileNotFoundError as error:
        raise _no_busybox() from error
    os.chmod(path, 0o755)


def _archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        try:
            tar.add(_BUSYBOX, "bin/busybox", filter=_plain)
        except FileNotFoundError as error:
            raise _no_busybox() from error
    return out.getvalue()


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode, entry.uid, entry.gid = 0o755, 0, 0
    return entry


def _no_busybox() -> HostError:
    return HostError(f"not found: {_BUSYBOX}", hint="apt-get install busybox-static", code="node-check")
