"""`create`: check everything, start the shim (it boots the VM), fork the waiter, write the pid file."""

from __future__ import annotations

import os

from bufferzone import oci, state
from bufferzone.cli import process_flags
from bufferzone.cli.flags import Flag, ignored
from bufferzone.client import removal, start, waiter
from bufferzone.errors import UsageError
from bufferzone.oci.host import check_host
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.cli.flags import Options
    from bufferzone.client.connection import Client
    from bufferzone.oci import Spec

FLAGS: tuple[Flag, ...] = (
    Flag("bundle b", "DIR", "directory with config.json", default="."),
    Flag("console-socket", "PATH", "unix socket that gets the terminal's master"),
    Flag("pid-file", "FILE", "where to write the pid of the process that stands for the container"),
    process_flags.PRESERVE_FDS,
    ignored("pidfd-socket", "PATH", "accepted, nothing is sent"),
    ignored("no-pivot", "", "the guest has a root file system of its own"),
    ignored("no-new-keyring", "", "the guest's keyrings are its own"),
)
USAGE = "[options] <container-id>"
DESCRIPTION = """Boots a virtual machine and makes the container in it, up to but not including its process.
The pid in the pid file is a small process on the host that ends with the container's exit status."""
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Create, detached."""
    id = state.check_id(words[0])
    spec = checked_spec(options, detached=True)
    directory = start.new_container(state.runtime_root(options.root), id, spec)
    try:
        pid = boot_detached(options, directory, spec)
        process_flags.write_pid_file(options, pid)
    except BaseException as error:
        removal.discard(directory, options.shim, error)
        raise
    return 0


def checked_spec(options: Options, *, detached: bool) -> Spec:
    """The bundle's config.json, with paths of the command line made absolute and terminal rules checked."""
    process_flags.refuse_descriptors(options)
    process_flags.settle_paths(options, "bundle", "pid_file", "console_socket")
    if not os.path.isdir(options.bundle):
        raise UsageError(f"bundle: no such directory: {options.bundle}")
    spec = oci.load(options.bundle)
    process_flags.check_console(options, spec.terminal, detached=detached)
    check_host(spec)
    return spec


def boot_detached(options: Options, directory: str, spec: Spec, restore_from: str = "") -> int:
    """Start the shim and the waiter; returns the waiter's pid."""
    start.start_shim(directory, spec, options.shim, restore_from, waiter.get_ready)
    return waiter.detach(job_of(options, directory, spec))


def job_of(options: Options, directory: str, spec: Spec) -> waiter.Job:
    """The waiter's job for a container's own process."""
    size = spec.process.get("consoleSize", {})
    network = spec.namespace("network")

    def begin(client: Client, uris: tuple[str, str, str], fds: Sequence[int]) -> None:
        stdin, stdout, stderr = uris
        request = task.CreateTaskRequest(
            id=os.path.basename(directory),
            bundle=spec.bundle,
            terminal=spec.terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        client.call("Create", request, fds=fds)

    return waiter.Job(
        directory,
        begin,
        terminal=spec.terminal,
        console_socket=options.console_socket,
        size=(size.get("width", 0) & 0xFFFF, size.get("height", 0) & 0xFFFF),
        network=None if network is None else network.get("path", ""),
        root=spec,
    )
