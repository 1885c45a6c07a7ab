"""Numbers of a set of measurements. Pure."""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured. Raises `ValueError` when there is none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The 50th percentile."""
    return percentile(values, 50)


def summary(values: Sequence[float]) -> dict[str, float]:
    """`n`, `p50`, `p99`, `min`; of nothing: only `n`, 0."""
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "p50": round(median(values), 2),
        "p99": round(percentile(values, 99), 2),
        "min": round(min(values), 2),
    }


def ratio(above: float | None, below: float | None) -> float | None:
    """`above` / `below`, or None where one of them is not known."""
    return None if above is None or not below else above / below
