"""Durations as runc and docker take them. Source: Go's time.ParseDuration."""

from __future__ import annotations

from bufferzone.errors import UsageError
from bufferzone.log import shown

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def seconds(text: str) -> float:
    """A duration as Go writes it; raises `UsageError` unless it is positive."""
    total, rest = 0.0, text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("hmsun"))]
        rest = rest[len(unit) :]
        if unit not in _UNITS or not number.strip(".") or number.count(".") > 1 or len(number) > 18:
            raise UsageError(f"invalid duration: {shown(text)}", hint="like 500ms, 5s or 1m30s")
        total += float(number) * _UNITS[unit]
    if not 0 < total < 1e9:
        raise UsageError(f"duration interval must be greater than 0: {shown(text)}")
    return total
