"""The program behind `bz bench`, `bz drill` and `bz audit --measure`. Its one argument is JSON: runs, only,
sandboxes, parallel, minutes, json, profile, plot; or `drill`, only, json, runtime, open; or `meter`,
runtimes, seconds, functions, json, plot. The report goes to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bufferzone import log
from bufferzone.errors import BufferzoneError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def drill(order: dict[str, Any]) -> int:
    """Take the ways out and tell; 1 where the host was reached or an attack was not tried."""
    from bufferzone.bench import attacks, drill, runtimes
    from bufferzone.cli import output
    from bufferzone.errors import UsageError
    from bufferzone.record import asdict

    for name in order["only"]:
        if name not in attacks.NAMES:
            raise UsageError(f"--only: no such attack: {name!a}", hint=", ".join(attacks.NAMES))
    with tempfile.TemporaryDirectory(prefix="bufferzone-drill-") as place:
        own = runtimes.write_program(os.path.join(place, "bufferzone"), "bufferzone.cli.main")
        found = drill.run({**order, "runtime": [order["runtime"] or own]}, _progress)
    _progress("")
    if order["json"]:
        print(json.dumps([asdict(each) for each in found], indent=1), flush=True)
    else:
        output.print_table(drill.rows(found))
    whole = len(found) == len(order["only"] or attacks.NAMES)
    return int(not whole or not all(each.contained and each.tried for each in found))


def meter(order: dict[str, Any]) -> int:
    """Count system calls and tell."""
    from bufferzone.bench import meter, plot, programs, runtimes
    from bufferzone.bench.places import own_place
    from bufferzone.cli import output
    from bufferzone.linux.process import become_subreaper

    become_subreaper()
    programs.watch_children()
    with own_place("bufferzone-meter-") as place:
        pyplot = plot.load(place) if order["plot"] else None
        own = runtimes.write_program(os.path.join(place, "bufferzone"), "bufferzone.cli.main")
        try:
            found = meter.measure(
                order["runtimes"], own, place, order["seconds"], _progress, functions=order["functions"]
            )
        finally:
            programs.end_all()
    _progress("")
    if order["json"]:
        print(json.dumps(found, indent=1), flush=True)
    else:
        output.print_table(meter.rows(found))
    if order["plot"]:
        meter.draw(found, order["plot"], pyplot)
    return 0


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def main(order: dict[str, Any]) -> int:
    """Measure and print; returns the exit status."""
    if order.pop("drill", False):
        return drill(order)
    if order.pop("meter", False):
        return meter(order)
    from bufferzone.bench import plot, report, session

    as_json, profile, path = order.pop("json"), order.pop("profile"), order.pop("plot")

    with tempfile.TemporaryDirectory(prefix="bufferzone-bench-plot-") as cache:
        pyplot = plot.load(cache) if path else None  # before the minutes of measuring, not after
        found = session.run(session.Order(**order), _progress)
        _progress("")
        print(json.dumps(found, indent=1) if as_json else report.text(found, profile=profile), flush=True)
        if path:
            plot.draw(found, path, pyplot)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
    except BufferzoneError as error:
        log.report(error, program="bz")
        sys.exit(error.exit_status)
