"""`run`: create and start; attached it also waits, ends with the exit status and deletes."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli import process_flags
from bufferzone.cli.flags import Flag, ignored
from bufferzone.cli.oci import create
from bufferzone.client import removal, start, waiter
from bufferzone.wire import task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options
    from bufferzone.client.connection import Client
    from bufferzone.oci import Spec

FLAGS = (
    *create.FLAGS,
    Flag("detach d", "", "do not wait for the end"),
    Flag("keep", "", "do not delete the container when it ended"),
    ignored("no-subreaper", "", "processes of the VM are reaped in the VM"),
)
USAGE = create.USAGE
DESCRIPTION = "Without --detach, stdio, signals and the terminal are passed through until the process ends."
WORDS = (1, 1)
INTERSPERSED = True


def run(options: Options, words: list[str]) -> int:
    """Run it."""
    return run_from(options, words, "")


def run_from(options: Options, words: list[str], checkpoint: str) -> int:
    """Run it from the beginning, or from the checkpoint in a directory."""
    id = state.check_id(words[0])
    spec = create.checked_spec(options, detached=options.detach)
    directory = start.new_container(state.runtime_root(options.root), id, spec)
    try:
        go = _detached if options.detach else _attached
        return go(options, directory, spec, checkpoint)
    except BaseException as error:
        removal.discard(directory, options.shim, error)
        raise


def _start(client: Client, id: str) -> None:
    client.call("Start", task.StartRequest(id=id))


def _detached(options: Options, directory: str, spec: Spec, checkpoint: str) -> int:
    from bufferzone.client.connection import Client

    pid = create.boot_detached(options, directory, spec, checkpoint)
    process_flags.write_pid_file(options, pid)
    with Client.connect(directory) as client:
        _start(client, os.path.basename(directory))
    return 0


def _attached(options: Options, directory: str, spec: Spec, checkpoint: str) -> int:
    start.start_shim(directory, spec, options.shim, checkpoint)
    job = create.job_of(options, directory, spec)

    def started(client: Client) -> None:
        process_flags.write_pid_file(options, os.getpid())
        _start(client, job.id)

    status = waiter.attach(job, started)
    if not options.keep:
        removal.remove(directory, job.id, force=True, program=options.shim)
    return status
