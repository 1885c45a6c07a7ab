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


def _passes_over(node: ast.AST) -> bool:
    """Whether it is an `except` of a broad class that does nothing."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    classes = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    broad = any(cls is None or dotted(cls).rpartition(".")[2] in _BROAD for cls in classes)
    return broad and all(isinstance(one, ast.Pass | ast.Continue | ast.Break) for one in node.body)


def test_an_error_of_any_kind_that_is_passed_over_in_silence_says_why():
    """Better by number, or told; where neither is possible, as in the guest, a comment has the reason."""
    findings = []
    for source in package():
        lines = source.text.splitlines()
        for node in ast.walk(source.tree):
            if _passes_over(node):
                assert isinstance(node, ast.ExceptHandler)
                if "#" not in "".join(lines[node.lineno - 1 : node.body[-1].end_lineno]):
                    findings.append(source.at(node, "why is every error of this class of no consequence?"))
    report(findings)


def test_a_silent_handler_is_found():
    for text, silent in (
        ("try: f()\nexcept OSError: pass", True),
        ("try: f()\nexcept (KeyError, errors.HostError): pass", True),
        ("try: f()\nexcept: pass", True),
        ("try: f()\nexcept FileNotFoundError: pass", False),
        ("try: f()\nexcept OSError: g()", False),
    ):
        assert any(_passes_over(node) for node in ast.walk(ast.parse(text))) is silent
