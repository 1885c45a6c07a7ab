"""The process object of a run: the container's own, with what the call says over it."""

from __future__ import annotations

from bufferzone.errors import UsageError
from bufferzone.oci.rules import check_process
from bufferzone.wire.process_keys import MEASURED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from bufferzone.workload import users

_MIB = 1 << 20


class Wanted:
    """What a call says of a process. Nothing is checked here."""

    __slots__ = ("args", "cwd", "env", "memory_mib", "terminal", "user")

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        memory_mib: int = 0,
        terminal: tuple[int, int] | None = None,
    ) -> None:
        """`memory_mib` 0: no limit of its own; `terminal`: columns and rows of one, None: it has none."""
        self.args, self.env, self.cwd, self.user = args, env, cwd, user
        self.memory_mib, self.terminal = memory_mib, terminal


def process_object(
    base: dict[str, Any], wanted: Wanted, find_user: Callable[[str], users.User]
) -> dict[str, Any]:
    """The OCI process object of `wanted` in a container whose own is `base`; `find_user` looks up one there.

    Raises `UsageError`, `SpecError`.

    A user other than root has only the capabilities that a program of its own may bring, as with Docker.
    """
    if isinstance(wanted.args, str) or not all(isinstance(arg, str) for arg in wanted.args):
        raise UsageError("args: expected a list of strings, the program first", hint='["sh", "-c", script]')
    process = {**base, "args": list(wanted.args), "terminal": wanted.terminal is not None}
    env = dict(entry.partition("=")[::2] for entry in base.get("env", []))
    if wanted.user:
        user = find_user(wanted.user)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}
        env["HOME"] = user.home
        if user.uid:
            sets = base.get("capabilities") or {}
            process["capabilities"] = {"bounding": sets.get("bounding", [])}
    if wanted.terminal is not None:
        env.setdefault("TERM", "xterm")
        process["consoleSize"] = {"width": wanted.terminal[0], "height": wanted.terminal[1]}
    env.update(wanted.env or {})
    process["env"] = [f"{name}={value}" for name, value in env.items()]
    if wanted.cwd:
        process["cwd"] = wanted.cwd
    process[MEASURED] = {"memory": wanted.memory_mib * _MIB}
    check_process(process)
    return process
