"""`bz audit`: what running sandboxes really hold, and what of this machine weakens their walls."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

_SEVERITIES = ("high", "medium", "low", "info")
FLAGS = (
    Flag("json", "", "print everything that was read, and the findings, as JSON"),
    Flag("html", "FILE", "write one self-contained page as well"),
    Flag(
        "fail-on",
        "SEVERITY",
        "end with 2 for a finding at least as grave: high, medium, low or info",
        default="high",
    ),
)
USAGE = "[options]"
DESCRIPTION = (
    "Reads from /proc what every process of every running sandbox holds, thread by thread, and the settings\n"
    "of this machine and of bufferzone. Changes nothing. Ends with 0, or with 2 where a finding is as grave\n"
    "as --fail-on says."
)
WORDS = (0, 0)
INTERSPERSED = True

_FOUND = 2


def run(options: Options, words: list[str]) -> int:
    """Look, and tell."""
    from bufferzone.audit import finding, page, report

    if options.fail_on not in _SEVERITIES:
        raise UsageError(f"--fail-on: no such severity: {options.fail_on!a}", hint=", ".join(_SEVERITIES))
    audit = report.look(state.runtime_root(options.root))
    if options.json:
        import json

        output.print_text(json.dumps(report.as_json(audit), indent=1) + "\n")
    else:
        output.print_table(report.rows(audit))
        _hints(audit.findings)
        output.print_text(f"\n{report.summary(audit)}\n")
    if options.html:
        try:
            with open(options.html, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(page.text(audit))
        except OSError as error:
            raise HostError(
                f"cannot write {options.html!a}: {error.strerror}", code="write-failed"
            ) from error
    return _FOUND if finding.reaches(audit.findings, options.fail_on) else 0


def _hints(findings: list[Finding]) -> None:
    """What to do, once for each kind of finding."""
    hints = {found.id: found.hint for found in findings if found.hint}
    if hints:
        output.print_text("\n")
        output.print_table([["ID", "HINT"], *([id, hint] for id, hint in hints.items())])


if TYPE_CHECKING:
    from bufferzone.audit.finding import Finding
