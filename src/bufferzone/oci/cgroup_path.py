"""linux.cgroupsPath in systemd's form, `slice:prefix:name`. Source: runc's docs/systemd.md."""

from __future__ import annotations


def systemd_form(path: str) -> tuple[str, str, str] | None:
    """(slice, prefix, name); None for any other path."""
    parts = path.split(":")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 and "/" not in path else None


def unit_name(prefix: str, name: str) -> str:
    """The unit of that form: a scope, or the slice that `name` says it is."""
    if name.endswith(".slice"):
        return name
    return f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
