"""An audit as one page of HTML: the picture of the zone, what crosses each line, findings, processes.

Self-contained: no script, nothing that is fetched, and a policy in it that says so. Every word of others,
such as names of processes and files, is escaped.
"""

from __future__ import annotations

import html

from bufferzone.audit import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.audit.report import Audit

#: line between two zones -> (what crosses it, what reads it, what bounds it)
LINES = (
    (
        "container | guest",
        (
            ("system calls", "the guest's Linux", "the bundle's capabilities and seccomp profile"),
            ("files, processes, network", "the guest's Linux", "namespaces and cgroup in the guest"),
        ),
    ),
    (
        "guest | VMM and helpers",
        (
            (
                "virtio: serial, network, disk, rng, balloon",
                "QEMU",
                "few devices; no disk, USB or display by default",
            ),
            ("file requests (FUSE over virtio)", "virtiofsd", "the shared tree is its root"),
            ("instructions", "KVM, or QEMU's TCG", "hardware; TCG is no boundary"),
        ),
    ),
    (
        "VMM and helpers | host",
        (
            (
                "system calls",
                "the host's kernel",
                "own uid, no capabilities, namespaces, system call filters",
            ),
            (
                "agent channel, QMP, console",
                "the shim",
                "frames and elements are bounded; no value becomes a path",
            ),
            ("frames of the network card", "tap, egress rules", "MAC and addresses must be the container's"),
        ),
    ),
)
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #d0d7de;vertical-align:top}
td{overflow-wrap:anywhere}
.high{color:#a40e26;font-weight:700}.medium{color:#8a4600}.low{color:#0550ae}.info{color:#57606a}
svg{width:100%;height:auto}svg text{font:15px system-ui,sans-serif;fill:#1b1f24}
"""
_ZONES = (
    ("host", "#eef1f4", "the kernel, other sandboxes, everybody's files"),
    ("VMM and helpers", "#dbe9f9", "QEMU, virtiofsd: own uid, no capabilities, empty root, filters"),
    ("guest", "#fdf0d5", "a Linux of its own, our agent: trusted with nothing"),
    ("container", "#fbdcd7", "the program, root if it likes"),
)


def text(audit: Audit) -> str:
    """The page."""
    found = report.as_json(audit)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>bufferzone audit</title><style>{_STYLE}</style></head><body>",
        "<h1>The buffer zone, as it is</h1>",
        f"<p>{_escaped(found['time'])}, kernel {_escaped(audit.kernel)}, {_escaped(audit.accelerator)}. ",
        f"{_escaped(report.summary(audit))}.</p>",
        _picture(),
        *(_crossings(name, rows) for name, rows in LINES),
        "<h2>Findings</h2>",
        _findings(found["findings"]),
        *(_sandbox(each) for each in found["sandboxes"]),
        "</body></html>\n",
    ]
    return "".join(parts)


def _escaped(text: object) -> str:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return html.escape(shown)


def _picture() -> str:
    """The zones, one inside another."""
    parts = ['<svg viewBox="0 0 900 400" role="img" aria-label="container in guest in VMM in host">']
    for depth, (name, colour, words) in enumerate(_ZONES):
        x, y = 15 + 50 * depth, 10 + 62 * depth
        width, height = 870 - 100 * depth, 380 - 84 * depth
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{colour}" '
            f'stroke="#57606a" stroke-width="{3 if depth in (1, 2) else 1}"/>'
            f'<text x="{x + 16}" y="{y + 26}" font-weight="700">{_escaped(name)}</text>'
            f'<text x="{x + 16}" y="{y + 48}">{_escaped(words)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """`rows` are HTML already."""
    top = "".join(f"<th>{_escaped(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _crossings(name: str, rows: tuple[tuple[str, str, str], ...]) -> str:
    cells = [[_escaped(cell) for cell in row] for row in rows]
    return f"<h2>{_escaped(name)}</h2>" + _table(("crosses", "read by", "held by"), cells)


def _findings(found: list[dict[str, str]]) -> str:
    rows = [
        [
            f'<span class="{_escaped(each["severity"])}">{_escaped(each["severity"])}</span>',
            *(_escaped(each[key]) for key in ("id", "where", "message", "hint")),
        ]
        for each in found
    ]
    return _table(("severity", "id", "where", "finding", "hint"), rows)


def _sandbox(sandbox: dict[str, Any]) -> str:
    rows = [[_escaped(cell) for cell in _process(each)] for each in sandbox["processes"]]
    head = ("process", "uid", "capabilities", "filters per thread", "no_new_privs", "descriptors", "mounts")
    return f"<h2>Sandbox {_escaped(', '.join(sandbox['ids']))}</h2>" + _table(head, rows)


def _process(process: dict[str, Any]) -> tuple[object, ...]:
    held = process["capabilities"]
    return (
        f"{process['role']} {process['pid']}",
        process["uid"],
        " ".join(held) if len(held) < 12 else f"{len(held)} of them",
        " ".join(str(thread["filters"]) for thread in process["threads"]),
        "yes" if process["no_new_privileges"] else "no",
        len(process["descriptors"]),
        len(process["mounts"]),
    )
