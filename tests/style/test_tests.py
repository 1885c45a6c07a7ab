"""The tests themselves: they wait for events and assert things that can fail."""

from __future__ import annotations

import ast

from style.source import from_tests, names_used, report


def test_no_test_sleeps():
    findings = []
    for source in from_tests():
        for node, name in names_used(source):
            if name == "time.sleep":
                findings.append(source.at(node, "time.sleep: wait for the event itself, with a deadline"))
    report(findings)


def test_every_assertion_can_fail():
    findings = []
    for source in from_tests():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant | ast.Tuple):
                findings.append(source.at(node, "an assertion that cannot fail"))
    report(findings)


def test_every_test_module_is_found_by_pytest():
    findings = []
    for source in from_tests():
        stem = source.name.rsplit("/", 1)[-1]
        has_tests = any(
            isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in source.tree.body
        )
        if has_tests and not stem.startswith("test_"):
            findings.append(f"{source.name}:1: holds tests that pytest does not collect")
    report(findings)
