"""What a waiter has to know: one process in a VM, and what of it is to be seen on the host.

Plain values, so that a job can be handed to another program as JSON.
"""

from __future__ import annotations

import os

from bufferzone import jsontext, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from bufferzone.oci import Spec


class Face:
    """What of a container the host is to see: its root file system, and (source, target, read-only) of every
    volume. `guests` are the targets of what is mounted in the guest alone. A tmpfs is among the volumes, too,
    without a source: it has a place among them, and what they are mounted on.
    """

    def __init__(
        self, rootfs: str, volumes: list[tuple[str, str, bool]], guests: list[str] | None = None
    ) -> None:
        self.rootfs, self.volumes, self.guests = rootfs, volumes, guests or []


class Job:
    """One process to stand for: the container's own of `bundle`, or with `exec_id` the `process` (an OCI
    process object) as one more in it.

    `directory` is the container's state directory. `patient`: that container may be paused.
    `network` is None (stay), "" (a new namespace) or a path. `rootfs`: mounts that make the root file system,
    [type, source, options] each, as containerd gives them; the shim alone sees it then, so there is no face.
    """

    def __init__(
        self,
        directory: str,
        *,
        bundle: str = "",
        process: dict[str, Any] | None = None,
        exec_id: str = "",
        patient: bool = False,
        terminal: bool = False,
        console_socket: str = "",
        size: tuple[int, int] = (0, 0),
        network: str | None = None,
        face: Face | None = None,
        rootfs: Sequence[list[Any]] = (),
    ) -> None:
        self.rootfs = list(rootfs)
        self.directory, self.bundle = directory, bundle
        self.process, self.exec_id, self.patient = process, exec_id, patient
        self.terminal, self.console_socket, self.size = terminal, console_socket, size
        self.network, self.face = network, face

    @property
    def id(self) -> str:
        """The container's id."""
        return os.path.basename(self.directory)

    def to_json(self) -> bytes:
        """For another program of ours."""
        face = self.face and [self.face.rootfs, self.face.volumes, self.face.guests]
        return jsontext.dumps({**self.__dict__, "face": face}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """The same job there; raises ValueError or TypeError."""
        form = jsontext.loads(data.decode())
        form["size"] = tuple(form["size"])
        if form["face"] is not None:
            rootfs, volumes, guests = form["face"]
            form["face"] = Face(rootfs, [tuple(volume) for volume in volumes], guests)
        return cls(**form)


def of_container(
    directory: str, spec: Spec, console_socket: str = "", rootfs: Sequence[list[Any]] = ()
) -> Job:
    """The job for a container's own process; `rootfs` as in `Job`."""
    network = spec.namespace("network")
    return Job(
        directory,
        bundle=spec.bundle,
        terminal=spec.terminal,
        console_socket=console_socket,
        size=_console_size(spec.process),
        network=None if network is None else network.get("path", ""),
        face=None if rootfs else _face(spec),
        rootfs=rootfs,
    )


def of_exec(
    directory: str, process: dict[str, Any], console_socket: str = "", *, patient: bool = False
) -> Job:
    """The job for one more process in a container; `process` is checked already."""
    return Job(
        directory,
        process=process,
        exec_id=f"{os.getpid()}-{os.urandom(6).hex()}",
        patient=patient,
        terminal=bool(process.get("terminal", False)),
        console_socket=console_socket,
        size=_console_size(process),
    )


def _face(spec: Spec) -> Face:
    from bufferzone.oci.mounts import is_bind, is_read_only  # an exec has none

    volumes, guests = [], []
    for entry in spec.mounts:
        if is_bind(entry):
            source = os.path.join(spec.bundle, entry.get("source", ""))
            volumes.append((source, entry["destination"], is_read_only(entry)))
        else:
            guests.append(entry["destination"])
            if entry.get("type") == "tmpfs":
                volumes.append(("", entry["destination"], True))
    return Face(spec.rootfs, volumes, guests)


def _console_size(process: dict[str, Any]) -> tuple[int, int]:
    size = process.get("consoleSize", {})
    return size.get("width", 0) & 0xFFFF, size.get("height", 0) & 0xFFFF


def write_pid_file(path: str, pid: int) -> None:
    """The pid, atomically and without a line break, as conmon and go-runc read it; no path, no file."""
    if path:
        state.replace_file(path, b"%d" % pid, 0o644)
