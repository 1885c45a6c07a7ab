"""The program behind `bz bench`. Its one argument is JSON: runs, only, sandboxes, parallel, minutes, json,
profile, plot. The report goes to stdout, progress and errors to stderr.
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


def main(order: dict[str, Any]) -> int:
    """Measure and print; returns the exit status."""
    from bufferzone.bench import plot, report, session

    as_json, profile, path = order.pop("json"), order.pop("profile"), order.pop("plot")

    def progress(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="bufferzone-bench-plot-") as cache:
        pyplot = plot.load(cache) if path else None  # before the minutes of measuring, not after
        found = session.run(session.Order(**order), progress)
        progress("")
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
