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


#: how the names of functions begin that fail by themselves; `bz` and `podman` check the status they are told
_FAILING = (
    "assert",
    "await",
    "bz",
    "end_checked",
    "expect",
    "fail",
    "podman",
    "raises",
    "report",
    "until",
    "warns",
)


def _says_something(test: ast.FunctionDef) -> bool:
    """Whether the test holds an assertion, or a call of something that is one."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2].lstrip("_")
            if name.startswith(_FAILING):
                return True
    return False


def test_every_test_says_what_it_expects():
    findings = []
    for source in from_tests():
        for node in source.tree.body:
            is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            if is_test and not _says_something(node):
                findings.append(source.at(node, f"{node.name} asserts nothing"))
    report(findings)


def test_a_test_that_asserts_nothing_is_found():
    tree = ast.parse("def test_a():\n    run()\ndef test_b():\n    run()\n    assert ran\n")
    assert [_says_something(test) for test in tree.body if isinstance(test, ast.FunctionDef)] == [False, True]
