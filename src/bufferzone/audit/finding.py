"""One thing that an audit found, as data; how grave it is, and in which order a person reads."""

from __future__ import annotations

from bufferzone.record import Record

#: gravest first. high: a wall is missing. medium: one is weaker than it should be. low: a second line of
#: defence is missing. info: a fact to know
SEVERITIES = ("high", "medium", "low", "info")


class Finding(Record):
    """`id` is stable and kebab-case, `where` what it is about, `hint` what to do; `message` is one line."""

    id: str
    severity: str
    where: str
    message: str
    hint: str = ""


def in_order(findings: list[Finding]) -> list[Finding]:
    """Gravest first, then by id and place."""
    return sorted(findings, key=lambda found: (SEVERITIES.index(found.severity), found.id, found.where))


def reaches(findings: list[Finding], severity: str) -> bool:
    """Whether one is at least as grave as `severity`."""
    worst = SEVERITIES.index(severity)
    return any(SEVERITIES.index(found.severity) <= worst for found in findings)


class Collector:
    """Takes the findings about one place."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[Finding] = []

    def add(self, id: str, severity: str, message: str, hint: str = "") -> None:
        """One more."""
        self.found.append(Finding(id=id, severity=severity, where=self.where, message=message, hint=hint))
