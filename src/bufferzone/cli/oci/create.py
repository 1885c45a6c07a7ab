"""`create`: check everything, start the shim (it boots the VM), fork the waiter, write the pid file."""

from __future__ import annotations

import os

from bufferzone import oci, state
from bufferzone.cli import ending, launch, waiter
from bufferzone.cli.flags import Flag, ignored
from bufferzone.errors import CallerError, UsageError
from bufferzone.oci.host import check_host
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.cli.flags import Options
    from bufferzone.client import Client
    from bufferzone.oci import Spec

PRESERVE_FDS = Flag("preserve-fds", "N", "0; host descriptors cannot enter a VM", kind="int", default=0)
FLAGS: tuple[Flag, ...] = (
    Flag("bundle b", "DIR", "directory with config.json", default="."),
    Flag("console-socket", "PATH", "unix socket that gets the terminal's master"),
    Flag("pid-file", "FILE", "where to write the pid of the process that stands for the container"),
    PRESERVE_FDS,
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
    directory = launch.new_container(state.runtime_root(options.root), id, spec)
    try:
        pid = boot_detached(options, directory, spec)
        write_pid_file(options, pid)
    except BaseException as error:
        ending.discard(directory, options.shim, error)
        raise
    return 0


def checked_spec(options: Options, *, detached: bool) -> Spec:
    """The bundle's config.json, with paths of the command line made absolute and terminal rules checked."""
    refuse_descriptors(options)
    settle_paths(options, "bundle", "pid_file", "console_socket")
    if not os.path.isdir(options.bundle):
        raise UsageError(f"bundle: no such directory: {options.bundle}")
    spec = oci.load(options.bundle)
    check_console(options, spec.terminal, detached=detached)
    check_host(spec)
    return spec


def settle_paths(options: Options, *names: str) -> None:
    """Make paths of the command line absolute; what the end of a boot would need is looked for now."""
    for name in names:
        if getattr(options, name):
            options.__dict__[name] = state.absolute(getattr(options, name))
    if options.pid_file and not os.path.isdir(directory := os.path.dirname(options.pid_file)):
        raise UsageError(f"--pid-file: no such directory: {directory}")
    if options.console_socket and not _is_socket(options.console_socket):
        raise UsageError(f"--console-socket: not a unix socket: {options.console_socket}")


def _is_socket(path: str) -> bool:
    try:
        return os.stat(path).st_mode & 0o170000 == 0o140000  # the stat module costs an import
    except OSError:
        return False


def refuse_descriptors(options: Options) -> None:
    """--preserve-fds above 0 cannot be honoured."""
    if options.preserve_fds > 0:
        raise CallerError(
            "host descriptors cannot be passed into a virtual machine: --preserve-fds", code="preserve-fds"
        )


def check_console(options: Options, terminal: bool, *, detached: bool) -> None:
    """A detached terminal needs a console socket, and only that may have one. Source: runc utils_linux.go."""
    if terminal and detached and not options.console_socket:
        raise UsageError("cannot allocate a terminal when detached without --console-socket")
    if options.console_socket and not (terminal and detached):
        raise UsageError(
            "--console-socket is for a detached process with a terminal", hint="process.terminal: true"
        )


def boot_detached(options: Options, directory: str, spec: Spec, restore_from: str = "") -> int:
    """Start the shim and the waiter; returns the waiter's pid."""
    launch.start_shim(directory, spec, options.shim, restore_from)
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


def write_pid_file(options: Options, pid: int) -> None:
    """The pid, atomically and without a line break, as conmon and go-runc read it."""
    if options.pid_file:
        state.replace_file(options.pid_file, b"%d" % pid, 0o644)
