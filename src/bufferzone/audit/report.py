"""An audit as one value: findings, what was read, what crosses each line. As text and as JSON."""

from __future__ import annotations

import os
import time

from bufferzone.audit import configuration, finding, held, host, hypervisor, sandboxes, walls
from bufferzone.audit.finding import Collector, Finding
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.audit.sandboxes import Sandbox


class Audit(Record):
    """What was found, gravest first, and the sandboxes looked at. `when`: seconds since the epoch."""

    findings: list[Finding]
    sandboxes: list[Sandbox]
    kernel: str
    accelerator: str
    when: float


def look(root: str) -> Audit:
    """Look at all sandboxes below the state root, the machine and the settings. Changes nothing."""
    machine = host.Host()
    running = sandboxes.find(root)
    ours = held.namespaces("/proc/self")
    top = os.stat("/")
    found = host.check(machine) + configuration.check(root)
    for sandbox in running:
        found += walls.check(sandbox, ours, (top.st_dev, top.st_ino))
    found += walls.check_together(running) + _hypervisors(running)
    return Audit(
        findings=finding.in_order(found),
        sandboxes=running,
        kernel=os.uname().release,
        accelerator="tcg" if machine.kvm_reason else "kvm",
        when=time.time(),
    )


def _hypervisors(running: list[Sandbox]) -> list[Finding]:
    """What is known of the versions that run; one finding for each hole and version."""
    findings = Collector("hypervisor")
    for name in sorted({sandbox.facts.get("bufferzone.vmm", "") for sandbox in running}):
        version = hypervisor.parse(name) if name.startswith("qemu ") else None
        for hole in hypervisor.holes(version) if version else ():
            message = f"{name} may have {hole.cve}: {hole.what} in {hole.device}"
            findings.add(
                "hypervisor-hole", "medium", message, "ask your distribution's security tracker; upgrade"
            )
    return findings.found


def as_json(audit: Audit) -> dict[str, Any]:
    """The whole as JSON values."""
    counts = dict.fromkeys(finding.SEVERITIES, 0)
    for found in audit.findings:
        counts[found.severity] += 1
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(audit.when)),
        "kernel": audit.kernel,
        "accelerator": audit.accelerator,
        "counts": counts,
        "findings": [
            {
                "id": each.id,
                "severity": each.severity,
                "where": each.where,
                "message": each.message,
                "hint": each.hint,
            }
            for each in audit.findings
        ],
        "sandboxes": [_sandbox(each) for each in audit.sandboxes],
    }


def _sandbox(sandbox: Sandbox) -> dict[str, Any]:
    ours = {key: value for key, value in sandbox.facts.items() if key.startswith("bufferzone.")}
    processes = [{"role": each.role, **held.as_json(each.held)} for each in sandbox.processes]
    return {"ids": list(sandbox.ids), "facts": ours, "processes": processes}


def rows(audit: Audit) -> list[list[str]]:
    """The findings as a table, with its head."""
    head = ["SEVERITY", "ID", "WHERE", "FINDING"]
    return [head, *([each.severity, each.id, each.where, each.message] for each in audit.findings)]


def summary(audit: Audit) -> str:
    """One line: how much was looked at, and what was found."""
    counts = as_json(audit)["counts"]
    processes = sum(len(sandbox.processes) for sandbox in audit.sandboxes)
    counted = ", ".join(f"{count} {severity}" for severity, count in counts.items())
    return f"{len(audit.sandboxes)} sandboxes, {processes} processes: {counted}"
