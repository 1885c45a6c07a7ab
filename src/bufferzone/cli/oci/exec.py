"""`exec`: one more process in a container that has not ended: --process FILE, or the bundle's plus flags."""

from __future__ import annotations

import os

from bufferzone import oci, state
from bufferzone.cli import process_flags
from bufferzone.cli.flags import Flag, ignored
from bufferzone.client import container, execution
from bufferzone.errors import CallerError, UsageError
from bufferzone.log import shown
from bufferzone.oci.rules import check_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("console-socket", "PATH", "unix socket that gets the terminal's master"),
    Flag("pid-file", "FILE", "where to write the pid of the process that stands for the new one"),
    Flag("process p", "FILE", "process object in JSON; the flags below are not looked at then"),
    Flag("detach d", "", "do not wait for the end"),
    Flag("tty t", "", "give it a terminal"),
    Flag("user u", "UID[:GID]", "run as this user"),
    Flag("additional-gids g", "GID", "one more group", kind="list"),
    Flag("cwd", "DIR", "working directory inside"),
    Flag("env e", "K=V", "one more environment variable", kind="list"),
    Flag("cap c", "NAME", "one more capability", kind="list"),
    Flag("no-new-privs", "", "set no_new_privs"),
    Flag("ignore-paused", "", "where the container is paused, wait until it is resumed"),
    Flag("cgroup", "PATH", "below the container's cgroup in the guest: join this one", kind="list"),
    process_flags.PRESERVE_FDS,
    ignored("pidfd-socket", "PATH", "accepted, nothing is sent"),
    ignored("process-label", "LABEL", "the guest has no SELinux"),
    ignored("apparmor", "PROFILE", "the guest has no AppArmor"),
)
USAGE = "[options] <container-id> <command> [arguments]"
DESCRIPTION = "Without --detach, stdio, signals and the terminal are passed through until the process ends."
WORDS = (1, -1)
INTERSPERSED = False
#: of either version; a named hierarchy of cgroup v1 counts too
_CONTROLLERS = frozenset(
    "blkio cpu cpuacct cpuset devices freezer hugetlb io memory misc net_cls net_prio perf_event pids"
    " rdma".split()
)


def run(options: Options, words: list[str]) -> int:
    """Run it; attached, the exit status is the process's."""
    process_flags.refuse_descriptors(options)
    cgroup = options.cgroup and _cgroup(options.cgroup)
    pid_file, console_socket = process_flags.pid_file(options), process_flags.console_socket(options)
    directory = container.find(options.root, words[0])
    status = state.status(directory)
    allowed = (state.CREATED, state.RUNNING)
    if status not in allowed and not (options.ignore_paused and status == state.PAUSED):
        raise container.refusal("exec", words[0], status)
    process = _process(options, words[1:], directory)
    if cgroup:
        from bufferzone.wire.process_keys import CGROUP  # few ask for one

        process[CGROUP] = cgroup
    process_flags.check_console(options, bool(process.get("terminal", False)), detached=options.detach)
    stdio, note = process_flags.STDIO, options.note
    if not options.detach:
        process_flags.warn_of_capabilities(process, options.warn)
        return execution.execute_attached(
            directory,
            process,
            stdio,
            pid_file=pid_file,
            patient=options.ignore_paused,
            pass_signals=True,
            note=note,
        )
    execution.execute(
        directory,
        process,
        stdio,
        console_socket=console_socket,
        pid_file=pid_file,
        patient=options.ignore_paused,
        forked=True,
        note=note,
    )
    process_flags.warn_of_capabilities(process, options.warn)
    return 0


def _cgroup(given: list[str]) -> str:
    """The path below the container's cgroup, `/` for that one itself. As with runc it is PATH, or
    CONTROLLER[,CONTROLLER]:PATH for each controller; the guest has one hierarchy for all of them.
    """
    path = ""
    for text in given:
        names, colon, path = text.rpartition(":")
        if ":" in names:
            raise UsageError(f"invalid --cgroup argument: {shown(text)}")
        if not colon and len(given) > 1:
            raise UsageError(f"invalid --cgroup argument: {shown(text)} (missing <controller>: prefix)")
        for name in names.split(",") if names else ():
            if name not in _CONTROLLERS and not name.startswith("name="):
                raise CallerError(f"--cgroup: unknown controller {shown(name)}", code="no-controller")
        path = os.path.normpath(path.strip("/") or ".")
        if path == ".." or path.startswith("../"):
            raise CallerError(f"--cgroup: {shown(text)} is not a sub cgroup path", code="not-below")
        if names and path != ".":
            raise CallerError(
                f"--cgroup: the guest has one hierarchy for all controllers: {shown(text)}",
                hint=f"--cgroup /{shown(path)}",
                code="unsupported",
            )
    return f"/{path.removeprefix('.')}"


def _process(options: Options, command: list[str], directory: str) -> dict[str, Any]:
    """The process object: the file's, or the container's own with the flags over it, as runc merges them."""
    if options.process:
        process = oci.parse_object(oci.read_bytes(options.process), options.process)
        check_process(process)
        return process
    if not command:
        raise UsageError("exec needs a command, or --process FILE")
    process = execution.own_process(directory)
    process["args"], process["terminal"] = command, options.tty
    if options.env:
        from bufferzone.cli import discretion  # most have none

        discretion.hide_values(options.env)
    process.setdefault("env", []).extend(options.env)
    if options.cwd:
        process["cwd"] = options.cwd
    if "no_new_privs" in options.given:
        process["noNewPrivileges"] = options.no_new_privs
    _set_user(process, options)
    _add_capabilities(process, options.cap)
    check_process(process)
    return process


def _set_user(process: dict[str, Any], options: Options) -> None:
    user = process.setdefault("user", {})
    if options.user:
        uid, colon, gid = options.user.partition(":")
        user["uid"] = _id(uid, "--user")
        if colon:
            user["gid"] = _id(gid, "--user")
    if options.additional_gids:
        user.setdefault("additionalGids", []).extend(
            _id(text, "--additional-gids") for text in options.additional_gids
        )


def _id(text: str, flag: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:12]) < 1 << 32):
        raise UsageError(f"{flag}: expected numbers, got {text[:40]!a}")
    return int(text)


def _add_capabilities(process: dict[str, Any], names: list[str]) -> None:
    """As runc: bounding, effective and permitted; ambient only where there are inheritable ones."""
    if not names:
        return
    sets = process.setdefault("capabilities", {})
    ambient = ("ambient",) if sets.get("inheritable") else ()
    for kind in ("bounding", "effective", "permitted", *ambient):
        sets.setdefault(kind, []).extend(names)
