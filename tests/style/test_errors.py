"""An error that is passed over is passed over by number, or told at debug level."""

from __future__ import annotations

import ast

from style.source import dotted, package, report

_BROAD = {"OSError", "Exception", "BaseException", "BufferzoneError", "HostError", "VmmError", "GuestError"}


def _suppresses_broadly(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = dotted(node.func) or ""
    if called.rpartition(".")[2] != "suppress":
        return False
    return any((dotted(a) or "").rpartition(".")[2] in _BROAD for a in node.args)


def test_no_error_is_suppressed_by_its_class():
    report(
        [
            source.at(node, "suppress by errno (linux.ignoring), or tell it (log.passing_over)")
            for source in package()
            for node in ast.walk(source.tree)
            if _suppresses_broadly(node)
        ]
    )


def test_a_broad_suppression_is_found():
    for text, broad in (
        ("suppress(OSError)", True),
        ("contextlib.suppress(ValueError, Exception)", True),
        ("suppress(errors.BufferzoneError)", True),
        ("suppress(FileNotFoundError)", False),
    ):
        assert _suppresses_broadly(ast.parse(text, mode="eval").body) is broad
