"""The report: one object for `--json`, and the same as plain tables. Pure."""

from __future__ import annotations

from bufferzone.bench import figures
from bufferzone.bench.bars import bars
from bufferzone.bench.runtimes import FLAGS, FLOORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from bufferzone.bench.measure import Column

VERSION = 1
MEASURES = ("start", "first exec", "exec", "state", "delete")
_TITLES = {
    "start": "start to first byte, ms",
    "first exec": "first exec, ms",
    "exec": "exec, ms",
    "state": "state, ms",
    "delete": "delete, ms",
}
_SIZES = (
    ("pss", "one more sandbox: PSS, MiB"),
    ("vmm", "  of it VMM"),
    ("not_vmm", "  of it not VMM"),
    ("unmapped", "  beside it: guest memory nobody maps"),
)


_GUEST = (
    ("image_mib", "guest: kernel and initrd, MiB", 1),
    ("touched_mib", "  memory touched when the agent answers, MiB", 1),
    ("blocks", "  blocks translated: boot to agent, restore to first byte", 0),
)


def build(
    machine: Mapping[str, Any],
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    columns: Mapping[str, Column],
) -> dict[str, Any]:
    """The whole report as JSON values; its keys are a promise, `version` counts its forms."""
    return {
        "version": VERSION,
        "machine": dict(machine),
        "options": dict(options),
        "runtimes": {name: _runtime(column, versions.get(name, "")) for name, column in columns.items()},
        "bars": bars(columns),
    }


def _runtime(column: Column, version: str) -> dict[str, Any]:
    return {
        "version": version,
        "flags": list(FLAGS.get(column.name, ())),
        "measured": bool(column.samples),
        "reason": column.reason,
        "ms": {name: figures.summary(values) for name, values in column.samples.items()},
        "samples_ms": {name: [round(v, 2) for v in values] for name, values in column.samples.items()},
        "starts_per_second": {str(count): rate for count, rate in column.rates.items()},
        "one_more_mib": column.memory,
        "per_gib": per_gib(column.memory),
        "growth": column.growth,
        "guest": column.guest,
        "profile": {"timeline_ms": phases(column.timelines), "processes_mib": column.roles},
    }


def per_gib(memory: Mapping[str, float]) -> float | None:
    """Sandboxes that fit into a GiB: by all their pages, mapped or not."""
    size = memory.get("pss", 0) + memory.get("unmapped", 0)
    return round(1024 / size, 1) if size > 0 else None


def phases(timelines: Sequence[Sequence[tuple[str, float]]]) -> list[list[Any]]:
    """[phase, its median duration, the median of its end], in the order of the first timeline."""
    ends: dict[str, list[float]] = {}
    spans: dict[str, list[float]] = {}
    for timeline in timelines:
        before = 0.0
        for phase, end in timeline:
            ends.setdefault(phase, []).append(end)
            spans.setdefault(phase, []).append(end - before)
            before = end
    return [[phase, round(figures.median(spans[phase]), 1), round(figures.median(ends[phase]), 1)]
            for phase in ends]  # fmt: skip


def text(report: Mapping[str, Any], *, profile: bool) -> str:
    """The report for people."""
    parts = [_heading(report), _table(_main_rows(report)), _reasons(report)]
    if profile:
        parts += _profile(report)
    parts.append(_table(_bar_rows(report["bars"])))
    return "\n".join(part for part in parts if part)


def _heading(report: Mapping[str, Any]) -> str:
    machine, options = report["machine"], report["options"]
    shape = f"{machine.get('vcpus', '?')} vCPU, {machine.get('guest_memory_mib', '?')} MiB"
    qemu = machine.get("qemu_version", "?")
    what = f"accelerator {machine.get('accelerator', 'unknown')}, {shape}, QEMU {qemu}"
    where = (
        f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_mib']} MiB, kernel {machine['kernel']}"
    )
    lines = [
        f"{what}, guest image {str(machine.get('image', '?'))[:12]}",
        f"{where}, load before {machine['load_before']:.2f}",
        *(
            f"{name} {found['version']}" + "".join(f" {flag}" for flag in found["flags"])
            for name, found in report["runtimes"].items()
            if found["measured"] and found["version"]
        ),
        f"{options['runs']} rounds; in a cell: median / 99th percentile",
    ]
    return "\n".join(lines) + "\n"


def _main_rows(report: Mapping[str, Any]) -> list[list[str]]:
    shown = {name: found for name, found in report["runtimes"].items() if found["measured"]}
    rows = [["", *shown]]
    for measure in MEASURES:
        rows.append([_TITLES[measure], *(_times(found["ms"].get(measure)) for found in shown.values())])
    counts = sorted({int(count) for found in shown.values() for count in found["starts_per_second"]})
    for count in counts:
        cells = [_number(found["starts_per_second"].get(str(count)), 2) for found in shown.values()]
        rows.append([f"starts per second, {count} at once", *cells])
    for key, title in _SIZES:
        rows.append([title, *(_number(found["one_more_mib"].get(key), 1) for found in shown.values())])
    rows.append(["sandboxes per GiB", *(_number(found["per_gib"], 1) for found in shown.values())])
    for key, title in (("first", "first start, ms"), ("last", "last start, ms"), ("ratio", "last / first")):
        rows.append(
            [_growth_title(shown, title), *(_number(f["growth"].get(key), 2) for f in shown.values())]
        )
    for key, title, digits in _GUEST:
        rows.append([title, *(_number(found["guest"].get(key), digits) for found in shown.values())])
    alike = {name: found["growth"].get("touched", {}) for name, found in shown.items()}
    rows.append(
        ["  memory touched before: last / first", *(_number(f.get("ratio"), 2) for f in alike.values())]
    )
    rows.append(["  touching a MiB: fastest / slowest tenth, ms", *(_touches(f) for f in alike.values())])
    return [row for row in rows if any(cell != "-" for cell in row[1:])]


def _touches(growth: Mapping[str, Any]) -> str:
    found = growth.get("touch_ms_per_mib")
    return f"{found[0]:.2f} / {found[1]:.2f}" if found else "-"


def _growth_title(shown: Mapping[str, Any], title: str) -> str:
    counts = {found["growth"]["sandboxes"] for found in shown.values() if found["growth"]}
    return f"1 to {max(counts, default=0)} sandboxes: {title}"


def _times(found: Mapping[str, float] | None) -> str:
    return f"{found['p50']:.0f} / {found['p99']:.0f}" if found and found["n"] else "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _reasons(report: Mapping[str, Any]) -> str:
    lines = [f"{name}: {found['reason']}" for name, found in report["runtimes"].items() if found["reason"]]
    return "".join(f"not measured: {line}\n" for line in lines)


def _profile(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, found in report["runtimes"].items():
        rows = [[phase, f"{span:.1f}", f"{end:.1f}"] for phase, span, end in found["profile"]["timeline_ms"]]
        start = found["ms"].get("start")
        if rows and start:
            if name not in FLOORS:
                rest = start["p50"] - float(rows[-1][2])
                rows.append(
                    ["before the shim, and create to first byte", f"{rest:.1f}", f"{start['p50']:.1f}"]
                )
            parts.append(_table([[f"{name}: phase", "ms", "over at"], *rows]))
        roles = found["profile"]["processes_mib"]
        if roles:
            heads = ("processes", "pss", "anonymous", "file", "shared")
            rows = [[role, *(f"{row[head]:.2f}" for head in heads)] for role, row in roles.items()]
            parts.append(_table([[f"{name}: MiB of one more", *heads], *rows]))
    return parts


def _bar_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["bar", "limit", "measured", ""]]
    for bar in found:
        unit = bar["unit"]
        value = "-" if bar["value"] is None else f"{bar['value']:g} {unit}"
        rows.append([bar["bar"], f"{bar['limit']:g} {unit}", value, bar["verdict"]])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
