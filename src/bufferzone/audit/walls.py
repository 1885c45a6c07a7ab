"""All processes of the sandboxes against the rules of their kind, and sandboxes against each other. Pure."""

from __future__ import annotations

from bufferzone.audit import jailed
from bufferzone.audit.finding import Collector, Finding
from bufferzone.audit.sandboxes import SHIM, WAITER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.audit.held import Held
    from bufferzone.audit.sandboxes import Sandbox

#: with one of these root is root, whatever else it has lost
_MIGHTY = frozenset(
    "CAP_SYS_ADMIN CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_PTRACE CAP_SYS_BOOT CAP_DAC_OVERRIDE "
    "CAP_DAC_READ_SEARCH CAP_BPF CAP_MAC_ADMIN CAP_SETUID".split()
)


def check(sandbox: Sandbox, host: dict[str, int], host_root: tuple[int, int]) -> list[Finding]:
    """The findings about one sandbox; `host` has the numbers of the host's namespaces, by kind."""
    findings = Collector(sandbox.name)
    for text in sandbox.unread:
        findings.add("unread-process", "medium", f"a process could not be looked at: {text}", "run as root")
    if sandbox.facts.get("bufferzone.wall", "").startswith("none"):
        message = "there is no VM: the container runs on the host's kernel"
        findings.add("no-wall", "high", message, 'vmm = "qemu" in the settings')
        return findings.found
    if sandbox.facts and not sandbox.of("vmm"):
        findings.add("no-vmm", "medium", "none of its processes is a hypervisor that we know")
    if sandbox.facts.get("bufferzone.accelerator") == "tcg":
        message = "its guest is emulated (TCG), which QEMU's project does not call a security boundary"
        findings.add("tcg", "medium", message, 'use a machine with KVM, and kvm = "require"')
    found = findings.found
    for process in sandbox.processes:
        findings = Collector(f"{sandbox.name}: {process.role} {process.held.pid}")
        if process.role in (SHIM, WAITER):
            _ours(process.role, process.held, findings)
        elif process.role in jailed.RULES:
            jailed.check(process.held, jailed.RULES[process.role], findings, host, host_root)
        else:
            message = f"a process that is no helper we know: {process.held.program!a}"
            findings.add("unknown-process", "info", message)
        found += findings.found
    return found


def _ours(role: str, held: Held, findings: Collector) -> None:
    """The shim and what stands for a container: both parse what comes from a guest."""
    mighty = sorted(_MIGHTY & set(held.capabilities))
    if mighty and 0 in held.first.uids:
        findings.add(f"{role}-capabilities", "medium", f"it is root with {' '.join(mighty)}")
    if any(thread.seccomp != 2 for thread in held.threads):
        findings.add(f"{role}-seccomp", "low", "a thread of it has no system call filter")
    if not all(thread.no_new_privileges for thread in held.threads):
        findings.add(f"{role}-no-new-privileges", "low", "no_new_privs is off")
    if held.limits.get("core") != 0:
        findings.add("core-dumps", "low", "it may dump core, which holds what passed through it")
    if held.tracer:
        findings.add("traced", "high", f"process {held.tracer} traces it", "end the debugger")


def check_together(sandboxes: list[Sandbox]) -> list[Finding]:
    """Helpers of two sandboxes with one uid may signal and trace each other."""
    owners: dict[int, set[str]] = {}
    for sandbox in sandboxes:
        for process in sandbox.processes:
            uid = process.held.first.uids[1]
            if process.role in ("vmm", "virtiofsd") and uid:
                owners.setdefault(uid, set()).add(sandbox.name)
    return [
        Finding(
            id="shared-uid",
            severity="high",
            where=", ".join(sorted(names)),
            message=f"helpers of several sandboxes have one uid: {uid}",
            hint="give the user more subordinate ids: /etc/subuid",
        )
        for uid, names in sorted(owners.items())
        if len(names) > 1
    ]
