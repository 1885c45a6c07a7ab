"""The bars that a warm start has to meet, as ratios and sizes. Pure."""

from __future__ import annotations

from bufferzone.bench.figures import ratio
from bufferzone.bench.runtimes import COLD, FLOOR, POOL, WARM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bufferzone.bench.measure import Column

MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"
#: sandboxes that the bar on growth is about
SANDBOXES = 50


def bars(columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """Each bar: what, limit, value (None: not measured), unit (x or MiB), verdict."""

    def p50(name: str, measure: str) -> float | None:
        return columns[name].p50(measure) if name in columns else None

    warm = columns.get(WARM)
    size = warm.memory if warm is not None else {}
    growth = warm.growth if warm is not None else {}
    start = p50(WARM, "start")
    return [
        _bar("warm start to first byte, against the floor", "x", 1.5, ratio(start, p50(FLOOR, "start"))),
        _bar("warm start to first byte, against cold", "x", 0.25, ratio(start, p50(COLD, "start"))),
        _bar("pool start, against runsc run", "x", 1.0, ratio(p50(POOL, "start"), p50("runsc", "start"))),
        _bar("exec, against runsc exec", "x", 2.0, ratio(p50(WARM, "exec"), p50("runsc", "exec"))),
        _bar("state, against runsc state", "x", 1.2, ratio(p50(WARM, "state"), p50("runsc", "state"))),
        _bar("one more idle warm sandbox, PSS of all host processes", "MiB", 110, size.get("pss")),
        _bar("one more idle warm sandbox, PSS without the VMM", "MiB", 25, size.get("not_vmm")),
        _bar(f"start of sandbox {SANDBOXES}, against the first", "x", 1.5, _grown(growth)),
        _bar("the same, each on memory that was touched before", "x", 1.5, _grown(growth.get("touched", {}))),
    ]


def _grown(growth: Mapping[str, Any]) -> float | None:
    ratio: float | None = growth.get("ratio")
    return ratio if growth.get("sandboxes", 0) >= SANDBOXES else None


def _bar(what: str, unit: str, limit: float, value: float | None) -> dict[str, Any]:
    # not rounded before it is compared: 1.504 is not 1.5
    verdict = NOT_MEASURED if value is None else MET if value <= limit else NOT_MET
    shown = None if value is None else round(value, 3 if unit == "x" else 1)
    return {"bar": what, "limit": limit, "value": shown, "unit": unit, "verdict": verdict}
