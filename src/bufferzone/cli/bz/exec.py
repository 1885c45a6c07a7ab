"""`bz exec`: one more command in a container that runs, whoever started that."""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli import process_flags
from bufferzone.cli.bz import chosen, wish_flags
from bufferzone.cli.flags import Flag
from bufferzone.client import container, execution
from bufferzone.errors import UsageError
from bufferzone.oci.rules import check_process
from bufferzone.workload import users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("interactive i", "", "the command reads our stdin"),
    Flag("tty t", "", "give it a terminal"),
    Flag("detach d", "", "do not wait for the end"),
    Flag("env e", "K[=V]", "one more environment variable; without a value, ours", kind="list"),
    Flag("env-file", "FILE", "environment variables, one a line", kind="list"),
    Flag("user u", "NAME|UID[:GROUP]", "who runs the command"),
    Flag("workdir w", "DIR", "working directory inside"),
)
USAGE = "[options] NAME COMMAND [arguments]"
DESCRIPTION = "The exit status is the command's; 126: it is not executable, 127: there is no such command."
WORDS = (2, -1)
INTERSPERSED = False


def run(options: Options, words: list[str]) -> int:
    """Run it."""
    name, *command = words
    directory = chosen.directory(options.root, name)
    status = state.status(directory)
    if status not in (state.CREATED, state.RUNNING):
        raise container.refusal("exec", name, status)
    if options.detach and (options.interactive or options.tty):
        raise UsageError("-d cannot be used with -i or -t")
    process = _process(options, command, directory)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    if options.detach:
        execution.execute(directory, process, (null, null, null), forked=True)
        return 0
    stdio = process_flags.STDIO if options.interactive else (null, *process_flags.STDIO[1:])
    return execution.execute_attached(directory, process, stdio, pass_signals=True)


def _process(options: Options, command: list[str], directory: str) -> dict[str, Any]:
    """The container's own process with the flags over it."""
    process = execution.own_process(directory)
    process["args"], process["terminal"] = command, options.tty
    if options.user:
        rootfs = str(state.read_state(directory)["rootfs"])
        _become(process, users.find_in_container(directory, rootfs, options.user))
    added = wish_flags.environment(options.env_file, options.env)
    if options.tty and not any(word.startswith("TERM=") for word in process.get("env", [])):
        added.insert(0, "TERM=xterm")
    own = {word.partition("=")[0] for word in added}
    before = [word for word in process.get("env", []) if word.partition("=")[0] not in own]
    process["env"] = [*before, *added]
    if options.workdir:
        process["cwd"] = options.workdir
    check_process(process)
    return process


def _become(process: dict[str, Any], user: users.User) -> None:
    """That user runs it, and anybody but root without capabilities, as with docker."""
    process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}
    process["env"] = [
        *(word for word in process.get("env", []) if not word.startswith("HOME=")),
        f"HOME={user.home}",
    ]
    if user.uid:
        sets = process.get("capabilities") or {}
        process["capabilities"] = {"bounding": sets.get("bounding", [])}
