"""One more process in a container that has not ended: its process object, its waiter, the pid file.

Prints nothing, and knows no command line.
"""

from __future__ import annotations

import os

from bufferzone import oci, state
from bufferzone.client import job, waiter
from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from bufferzone.client.connection import Client


def own_process(directory: str) -> dict[str, Any]:
    """The process object in the bundle of the container, for a caller to change; raises `SpecError`."""
    spec = _config(directory)
    process: dict[str, Any] = spec["process"]
    process.pop("consoleSize", None)
    return process


def _config(directory: str) -> dict[str, Any]:
    bundle = oci.parse_object(state.state_text(directory), state.STATE)["bundle"]
    spec = oci.parse_object(oci.read_bytes(os.path.join(bundle, "config.json")))
    oci.validate(spec)
    return spec


def execute(
    directory: str,
    process: dict[str, Any],
    stdio: Sequence[int],
    *,
    console_socket: str = "",
    pid_file: str = "",
    patient: bool = False,
    forked: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """Start `process`, an OCI process object that was checked (`oci.rules.check_process`), in the container
    whose state is in `directory`; the pid of what stands for it on the host.

    `stdio` are the descriptors it gets. `patient`: in a paused container it begins once that is resumed,
    which is waited for; else that is an error. `forked`: see `detach.detach`. Raises what is wrong; then
    there is no process.
    """
    from bufferzone.client import detach, stdio_owner  # an exec that waits for the end needs none of it

    stdio_owner.give(stdio, process.get("user", {}), lambda: _config(directory).get("linux", {}))
    note("start the process")
    pid = detach.detach(
        job.of_exec(directory, process, console_socket, patient=patient), stdio, forked=forked
    )
    note(f"the process that stands for it has pid {pid}")
    try:
        job.write_pid_file(pid_file, pid)
    except HostError:
        detach.abandon(pid)
        raise
    return pid


def execute_attached(
    directory: str,
    process: dict[str, Any],
    stdio: Sequence[int],
    *,
    pid_file: str = "",
    patient: bool = False,
    pass_signals: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """The same, and wait for its end: its exit status. We are what stands for it; see `waiter.attach`."""
    note("start the process")
    work = job.of_exec(directory, process, patient=patient)

    def begun(client: Client) -> None:
        job.write_pid_file(pid_file, os.getpid())

    status = waiter.attach(work, begun, stdio, pass_signals=pass_signals)
    note(f"the process ended with status {status}")
    return status
