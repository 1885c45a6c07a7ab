"""What the helpers of a sandbox really hold, looked at before a container's program runs.

A jail is what somebody meant. This reads from /proc what came of it, thread by thread: uids, capabilities,
no_new_privs, filters of system calls, namespaces, descriptors, root, limits. The rules are those of
`bz audit`. Left out are mounts, which come and go with volumes.
"""

from __future__ import annotations

import os

from bufferzone.audit import held, jailed
from bufferzone.audit.finding import Collector, in_order
from bufferzone.errors import VmmError
from bufferzone.linux import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bufferzone.audit.finding import Finding

REFUSE, WARN, OFF = "refuse", "warn", "off"
POLICIES = (REFUSE, WARN, OFF)
#: grave for a sandbox that runs, and no more than the helper holds: who watches a start with strace(1) could
_NO_RIGHTS = ("traced",)


def check(helpers: Iterable[tuple[str, int]], policy: str, log: Callable[[str], None]) -> None:
    """Look at the (role, pid) of `helpers`; what they hold too much of is logged.

    Raises `VmmError` (`wall-missing`) where that is grave and `policy` is to refuse, unless we are a user
    with a single id, who cannot give a helper one of its own.
    """
    found = [each for role, pid in helpers for each in _look(role, pid, log)]
    told = [each for each in in_order(found) if each.severity in ("high", "medium")]
    for each in told:
        log(f"{each.where} holds too much: {each.message}")
    missing = [each for each in told if each.severity == "high" and each.id not in _NO_RIGHTS]
    if policy == REFUSE and missing and _has_ids():
        raise VmmError(
            f"a wall is missing: {missing[0].where}: {missing[0].message}",
            hint='bz audit; self_audit = "warn" starts it all the same',
            code="wall-missing",
        )


def _look(role: str, pid: int, log: Callable[[str], None]) -> list[Finding]:
    findings = Collector(f"{role} {pid}")
    root = os.stat("/")
    try:
        seen = held.read(pid, mounts=False)
    except PermissionError as error:
        log(f"{findings.where} cannot be looked at: {error.strerror}")
        return []
    except OSError:
        return []  # it has ended, which others tell
    jailed.check(
        seen, jailed.RULES[role], findings, held.namespaces("/proc/self"), (root.st_dev, root.st_ino)
    )
    return findings.found


def _has_ids() -> bool:
    return identity.is_real_root() or (os.geteuid() == 0 and len(identity.spare_ids()) > 1)
