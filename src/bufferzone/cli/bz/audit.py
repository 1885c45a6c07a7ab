"""`bz audit`: what running sandboxes really hold, and what of this machine weakens their walls."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

_MEASURED = ("runc", "crun", "runsc", "bufferzone-warm", "bufferzone-cold", "bufferzone-block")
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
    Flag("measure", "", "count the host's system calls on behalf of a container instead; takes strace"),
    Flag("runtime", "NAME", "measure: one of " + ", ".join(_MEASURED) + "; may be repeated", kind="list"),
    Flag("seconds", "N", "measure: how long each workload is counted", kind="int", default=5),
    Flag("functions", "", "measure: the kernel's functions as well, where it lets root trace them"),
    Flag("plot", "FILE", "measure: draw a PNG; takes python3-matplotlib"),
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

    if options.measure:
        return _measure(options)
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


def _measure(options: Options) -> int:
    """Become the program that measures: it is above the commands."""
    import json
    import os

    from bufferzone import programs

    chosen = ["bufferzone-warm" if name == "bufferzone" else name for name in options.runtime]
    for name in chosen:
        if name not in _MEASURED:
            raise UsageError(f"--runtime: no such runtime: {name!a}", hint=", ".join(_MEASURED))
    if not 1 <= options.seconds <= 600:
        raise UsageError(f"--seconds: must be 1 to 600, got {options.seconds}")
    if os.geteuid() != 0:
        raise HostError("measure needs root: it traces processes", hint="run as root")
    order = {"meter": True, "runtimes": chosen or ["runc", "bufferzone-warm"], "seconds": options.seconds}
    order |= {"functions": options.functions}
    order |= {"json": options.json, "plot": os.path.abspath(options.plot) if options.plot else ""}
    argv = programs.argv("bench", json.dumps(order))
    os.execve(argv[0], argv, programs.ENVIRONMENT)


def _hints(findings: list[Finding]) -> None:
    """What to do, once for each kind of finding."""
    hints = {found.id: found.hint for found in findings if found.hint}
    if hints:
        output.print_text("\n")
        output.print_table([["ID", "HINT"], *([id, hint] for id, hint in hints.items())])


if TYPE_CHECKING:
    from bufferzone.audit.finding import Finding
