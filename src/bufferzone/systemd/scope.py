"""Transient scopes: the cgroup of processes that systemd did not start, as a unit that it knows.

A scope ends with its last process, and goes then, failed or not (`CollectMode`). Source: systemd.scope(5),
org.freedesktop.systemd1(5), systemd's docs/CONTROL_GROUP_INTERFACE.md.
"""

from __future__ import annotations

import time

from bufferzone.errors import HostError
from bufferzone.systemd.bus import Bus, CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    #: name -> (D-Bus type, value)
    Properties = Mapping[str, tuple[str, Any]]

#: a job of systemd's, on a machine where it waits for its turn
_JOB_S = 60.0
#: how long a scope of the same name whose processes have ended may take to go
_CLASH_S = 5.0
_BEFORE: Properties = {
    "CollectMode": ("s", "inactive-or-failed"),
    "DefaultDependencies": ("b", False),
    "Delegate": ("b", True),
    "CPUAccounting": ("b", True),
    "IOAccounting": ("b", True),
    "MemoryAccounting": ("b", True),
    "TasksAccounting": ("b", True),
}


def start(unit: str, slice_: str, pids: Sequence[int], description: str) -> None:
    """Make the scope `unit` below `slice_` (empty: the manager's default) with these processes in it.

    Raises `HostError` `systemd`; then there is none of ours.
    """
    properties = {"Description": ("s", description), "PIDs": ("au", list(pids)), **_BEFORE}
    if slice_:
        properties["Slice"] = ("s", slice_)
    with Bus.connect() as bus:
        arguments = [unit, "fail", list(properties.items()), []]
        end = time.monotonic() + _CLASH_S
        while True:
            try:
                (job,) = bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
                break
            except CallError as error:
                if error.name != "UnitExists" or time.monotonic() > end:
                    raise _refusal(f"cannot make the scope {unit}", error) from error
                _await_predecessor(bus, unit)
        result = bus.await_signal("JobRemoved", job, _JOB_S, at=1)[3]
    if result != "done":
        raise HostError(
            f"systemd did not make the scope {unit}: its job ended with: {result}",
            hint=f"journalctl -u {unit}",
            code="systemd",
        )


def _await_predecessor(bus: Bus, unit: str) -> None:
    """Let one that failed go, or has nobody in it any more; return at the next reason to look again."""
    try:
        bus.call("ResetFailedUnit", "s", [unit])
        bus.await_signal("UnitRemoved", unit, _CLASH_S / 10)
    except HostError:
        pass  # it is not loaded any more, or it stays: the next try tells


def _refusal(what: str, error: CallError) -> HostError:
    hint = ""
    if error.name == "UnitExists":
        hint = "another container, or a service, has this name: see systemctl status"
    elif error.name in ("AccessDenied", "InteractiveAuthorizationRequired"):
        hint = "only root manages the machine's units"
    return HostError(f"{what}: {error.message.removeprefix('systemd: ')}", hint=hint, code="systemd")


def set_properties(unit: str, properties: Properties) -> None:
    """Change them while it runs; raises `HostError` `systemd`, then none has changed."""
    with Bus.connect() as bus:
        bus.call("SetUnitProperties", "sba(sv)", [unit, True, list(properties.items())])


def attach(unit: str, pid: int) -> None:
    """Have systemd move a process into it, which an ordinary user may not do; raises `HostError`."""
    with Bus.connect() as bus:
        bus.call("AttachProcessesToUnit", "ssau", [unit, "", [pid]])


def stop(unit: str) -> str:
    """End what is in it still and wait until it is gone; what came of it, empty: it is gone.

    Without a manager there is no scope.
    """
    try:
        with Bus.connect() as bus:
            (job,) = bus.call("StopUnit", "ss", [unit, "replace"])
            result = str(bus.await_signal("JobRemoved", job, _JOB_S, at=1)[3])
    except CallError as error:
        return "" if error.name == "NoSuchUnit" else error.message
    except HostError as error:
        return error.message
    return "" if result == "done" else f"its job ended with: {result}"
