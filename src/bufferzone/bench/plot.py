"""The report as a picture: starts, growth, memory. matplotlib is asked for here alone, and only for this."""

from __future__ import annotations

import os
import sys

from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: where Debian's python3-matplotlib is: our programs start without site-packages
_PACKAGES = "/usr/lib/python3/dist-packages"


def load(cache: str) -> Any:
    """matplotlib's pyplot, drawing into files; raises `HostError` when it is not installed.

    `cache` is a directory that it may fill with its list of fonts.
    """
    os.environ["MPLCONFIGDIR"] = cache
    if _PACKAGES not in sys.path:
        sys.path.append(_PACKAGES)
    try:
        import matplotlib
    except ImportError as error:
        raise HostError(
            f"cannot draw: {error}", hint="apt-get install python3-matplotlib", code="no-matplotlib"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw(report: Mapping[str, Any], path: str, pyplot: Any) -> None:
    """Write a PNG; `pyplot` is what `load` returned. Raises `HostError` when the file cannot be written."""
    found = {name: value for name, value in report["runtimes"].items() if value["measured"]}
    figure, (starts, growth, sizes) = pyplot.subplots(1, 3, figsize=(16, 5), layout="constrained")
    _draw_starts(starts, found)
    _draw_growth(growth, found)
    _draw_sizes(sizes, found)
    machine = report["machine"]
    figure.suptitle(f"bz bench: {machine.get('accelerator', '?')}, {machine['cpus']} CPUs, {machine['cpu']}")
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error
    finally:
        pyplot.close(figure)


def _draw_starts(axes: Any, found: Mapping[str, Any]) -> None:
    rows = [(name, value["ms"]["start"]) for name, value in found.items() if value["ms"].get("start")]
    for at, (_, times) in enumerate(rows):
        axes.barh(at, times["p50"])
        axes.plot([times["p50"], times["p99"]], [at, at], color="black")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_title("start to first byte, ms (median, line to 99th percentile)")


def _draw_growth(axes: Any, found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        starts = value["growth"].get("starts", ())
        if starts:
            axes.plot(range(1, len(starts) + 1), starts, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sandboxes that run")
    axes.set_title("start of one more, ms")
    if axes.lines:
        axes.legend()


def _draw_sizes(axes: Any, found: Mapping[str, Any]) -> None:
    rows = [(name, value["one_more_mib"]) for name, value in found.items() if value["one_more_mib"]]
    left = [0.0] * len(rows)
    for key, label in (("vmm", "VMM"), ("not_vmm", "not VMM"), ("unmapped", "memory nobody maps")):
        widths = [max(0.0, size.get(key, 0.0)) for _, size in rows]
        axes.barh(range(len(rows)), widths, left=left, label=label)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_title("one more sandbox, MiB")
    if rows:
        axes.legend()
