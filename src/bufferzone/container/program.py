"""The last steps of a container process, in the child: stdio, credentials, filters, execve.

`check` runs while the container is created, `execute` once it is started. Source: runtime-spec config.md
"process", runc libcontainer/init_linux.go (finalizeNamespace) and standard_init_linux.go, capabilities(7),
seccomp(2).
"""

from __future__ import annotations

import os

from bufferzone.container import channel as ch
from bufferzone.container import executable
from bufferzone.errors import GuestError, SpecError
from bufferzone.linux import capabilities, limits, terminal
from bufferzone.linux import process as lp
from bufferzone.linux.capability_names import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from bufferzone.container.channel import ChildEnd
    from bufferzone.container.child_spec import ChildSpec

PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}


class Program:
    """What `check` found: the file to execute, argv, environment, and the process section it came from."""

    __slots__ = ("args", "environment", "path", "process", "terminal")

    def __init__(self, process: dict[str, Any], path: str, environment: dict[str, str]) -> None:
        self.process, self.path, self.environment = process, path, environment
        self.args = [str(arg) for arg in process["args"]]
        self.terminal = bool(process.get("terminal"))


def check(process: dict[str, Any]) -> Program:
    """Go to the working directory and find the program, as the container's user would.

    Raises `SpecError`, `GuestError` (working directory) or `ExecError`. The current directory is
    process.cwd afterwards.
    """
    args = process.get("args") or []
    if not args:
        raise SpecError("process.args: must not be empty")
    environment = _environment(process)
    cwd = str(process.get("cwd") or "/")
    as_root = _chdir(cwd) is None
    _become_effective(process)
    try:
        if not as_root:
            problem = _chdir(cwd)
            if problem is not None:
                text = os.strerror(problem.errno or 0).lower()
                raise GuestError(f'chdir to cwd ("{cwd}") set in config.json failed: {text}', code="bad-cwd")
        path = executable.find(str(args[0]), environment.get("PATH"))
    finally:
        _become_root()
    return Program(process, path, environment)


def execute(program: Program, channel: ChildEnd, child_spec: ChildSpec) -> NoReturn:
    """Take on the identity of `program` and become it. Failures are reported through `channel`."""
    process = program.process
    persona = (child_spec.config.get("linux") or {}).get("personality")
    try:
        if "HOME" not in program.environment:
            program.environment["HOME"] = _home_of(int((process.get("user") or {}).get("uid") or 0))
        channel.request(ch.LIMITS)
        try:
            lp.new_session_keyring(f"_ses.{child_spec.id}")
        except OSError:
            pass  # a kernel without keyrings, or the user's quota of them: runc goes on too
        if persona:
            limits.set_personality(PERSONALITIES[str(persona.get("domain") or "LINUX")])
        if child_spec.locks:
            _have_locks_heard(channel)
        take_identity(process, child_spec.seccomp)
        os.execve(program.path, program.args, program.environment)
    except OSError as error:
        if error.filename == program.path:
            failure = executable.exec_error(program.path, error)
            channel.fail(failure, 127 if failure.code == "exec-not-found" else 126)
        channel.fail(
            GuestError(
                f"cannot become the container process: {error.strerror} {error.filename or ''}".rstrip()
            )
        )
    except BaseException as error:
        channel.fail(error)


def use_stdio(fds: tuple[int, int, int]) -> None:
    """Make `fds` 0, 1 and 2, inherited by the program. They must all be above 2."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)


def use_terminal(slave: int, process: dict[str, Any]) -> None:
    """Make the slave our stdio and controlling terminal, of the size asked for, owned by the container's
    user.
    """
    use_stdio((slave, slave, slave))
    os.close(slave)
    terminal.make_controlling(0)
    size = process.get("consoleSize") or {}
    if size.get("width") and size.get("height"):
        terminal.resize(0, int(size["width"]), int(size["height"]))
    uid = int((process.get("user") or {}).get("uid") or 0)
    if uid:
        os.fchown(0, uid, -1)


def _have_locks_heard(channel: ChildEnd) -> None:
    """Let the agent hear of every call for a file lock, see container/locks."""
    from bufferzone.container.lockcalls import COMMANDS
    from bufferzone.linux import usernotif

    listener = usernotif.listen(COMMANDS)
    channel.send(ch.LOCKS, fd=listener)
    os.close(listener)


def take_identity(process: dict[str, Any], seccomp: tuple[bytes, int]) -> None:
    """Groups, user, capabilities, no_new_privs, seccomp: the filter goes in as late as its own rights
    allow.
    """
    user = process.get("user") or {}
    available = capabilities.permitted()
    sets = {
        name: _mask(process, name) & available
        for name in ("effective", "permitted", "inheritable", "ambient")
    }
    no_new_privileges = bool(process.get("noNewPrivileges"))
    _chdir_again(process)
    lp.drop_bounding(_mask(process, "bounding"))
    lp.keep_capabilities(True)
    os.setgroups([int(gid) for gid in user.get("additionalGids") or []])
    gid, uid = int(user.get("gid") or 0), int(user.get("uid") or 0)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    umask = user.get("umask")
    os.umask(0o022 if umask is None else int(umask))
    if no_new_privileges:
        lp.set_no_new_privileges()
    elif seccomp[0]:  # needs CAP_SYS_ADMIN, so it comes before the capabilities go
        lp.set_capabilities(effective=available, permitted=available, inheritable=0)
        lp.load_seccomp(*seccomp)
    lp.set_capabilities(
        effective=sets["effective"] & sets["permitted"],
        permitted=sets["permitted"],
        inheritable=sets["inheritable"],
    )
    lp.set_ambient(sets["ambient"] & sets["permitted"] & sets["inheritable"])
    if no_new_privileges and seccomp[0]:
        lp.load_seccomp(*seccomp)


def _mask(process: dict[str, Any], name: str) -> int:
    """A capability set as a mask.

    Names that no kernel knows are ignored, as runc does (newer host, older guest).
    """
    names = (process.get("capabilities") or {}).get(name) or []
    return lp.capability_mask([name for name in names if name in CAPABILITIES])


def _environment(process: dict[str, Any]) -> dict[str, str]:
    """process.env as a mapping; a later entry wins."""
    environment = {}
    for entry in process.get("env") or []:
        key, equals, value = str(entry).partition("=")
        if not equals or not key:
            raise SpecError(f"process.env: invalid environment variable: {str(entry)!r}")
        environment[key] = value
    return environment


def _become_effective(process: dict[str, Any]) -> None:
    """Effective ids and capabilities of the container's user, for checks of access; the real ids stay
    root.
    """
    user = process.get("user") or {}
    os.setgroups([int(gid) for gid in user.get("additionalGids") or []])
    os.setegid(int(user.get("gid") or 0))
    if user.get("uid"):
        os.seteuid(int(user["uid"]))
    else:
        permitted = capabilities.permitted()
        lp.set_capabilities(
            effective=_mask(process, "effective") & permitted, permitted=permitted, inheritable=0
        )


def _become_root() -> None:
    """Back to full rights."""
    os.seteuid(0)
    permitted = capabilities.permitted()
    lp.set_capabilities(effective=permitted, permitted=permitted, inheritable=0)
    os.setegid(0)
    os.setgroups([])


def _chdir(path: str) -> OSError | None:
    try:
        os.chdir(path)
    except OSError as error:
        return error
    return None


def _chdir_again(process: dict[str, Any]) -> None:
    """The directory was checked at create; a startContainer hook may have moved things since
    (CVE-2024-21626).
    """
    if not os.getcwd().startswith("/"):
        raise GuestError(
            "current working directory is outside of container mount namespace root", code="bad-cwd"
        )


def _home_of(uid: int) -> str:
    """The home directory that the image's /etc/passwd gives `uid`, else `/`."""
    try:
        with open("/etc/passwd", "rb") as file:
            lines = file.read(1 << 20).split(b"\n")
    except OSError:
        return "/"
    for line in lines:
        parts = line.split(b":")
        if len(parts) >= 6 and parts[2] == str(uid).encode():
            return os.fsdecode(parts[5]) or "/"
    return "/"
