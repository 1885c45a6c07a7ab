"""The shape of modules: short, said what they are for, finished."""

from __future__ import annotations

import ast
import re

from style.source import everything, package, report

MAX_MODULE = 400  # lines; 300 is the aim
MAX_FUNCTION = 60  # lines; 40 is the aim
EMPTY_NAMES = {"util", "utils", "common", "helper", "helpers", "manager", "inner", "base", "misc"}
EMPTY_PARAMETERS = {"more", "then", "asked", "also", "told", "one_less"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_every_module_says_what_it_is_for():
    report([f"{s.name}:1: no docstring" for s in everything() if not ast.get_docstring(s.tree)])


def test_no_module_is_too_long():
    findings = []
    for source in package():
        lines = source.text.count("\n")
        if lines > MAX_MODULE:
            findings.append(f"{source.name}:{MAX_MODULE}: {lines} lines, at most {MAX_MODULE}")
    report(findings)


def test_no_function_is_too_long():
    findings = []
    for source in package():
        for node in ast.walk(source.tree):
            if isinstance(node, _FUNCTION):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    findings.append(source.at(node, f"{node.name}: {lines} lines, at most {MAX_FUNCTION}"))
    report(findings)


def test_nine_of_ten_functions_are_seen_at_a_glance():
    trees = [source.tree for source in package()]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, _FUNCTION)]
    lines = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    assert lines[len(lines) * 9 // 10] < 25


def test_no_module_has_an_empty_name():
    findings = []
    for source in everything():
        words = {word for part in source.name.split("/") for word in part.removesuffix(".py").split("_")}
        if words & EMPTY_NAMES:
            findings.append(f"{source.name}:1: the name says nothing: {(words & EMPTY_NAMES).pop()}")
    report(findings)


def test_no_parameter_has_a_name_that_says_nothing_of_its_value():
    findings = []
    for source in package():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.arg) and node.arg in EMPTY_PARAMETERS:
                findings.append(source.at(node, f"{node.arg!r}: of what?"))
    report(findings)


def test_nothing_is_left_unfinished():
    findings = []
    for source in everything():
        for number, line in enumerate(source.text.splitlines(), 1):
            if UNFINISHED.search(line) and not source.name.endswith("style/test_shape.py"):
                findings.append(f"{source.name}:{number}: {line.strip()}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and node.id == "NotImplementedError":
                findings.append(source.at(node, "NotImplementedError"))
    report(findings)


def test_nobody_relies_on_a_finalizer():
    findings = []
    for source in package():
        for node in ast.walk(source.tree):
            if isinstance(node, _FUNCTION) and node.name == "__del__":
                findings.append(source.at(node, "__del__: release in a context manager"))
    report(findings)
