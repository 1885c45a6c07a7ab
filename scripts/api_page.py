#!/usr/bin/python3 -IS
"""Prints docs/api.md: what `import bufferzone` exports, signatures and docstrings. Reads the source alone.

scripts/api_page.py >docs/api.md
"""

from __future__ import annotations

import ast
import os
import sys

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src", "bufferzone")
HEAD = """# The library, name by name

Printed by `scripts/api_page.py` from the docstrings. [library.md](library.md) tells how they go together.
"""


def parse(module: str) -> ast.Module:
    """A module of ours."""
    path = os.path.join(SOURCE, *module.split(".")) + ".py"
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())


def exports() -> dict[str, str]:
    """Name -> module, as `bufferzone/__init__.py` has them."""
    for node in parse("__init__").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS":
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise SystemExit("api_page.py: no _EXPORTS")


def signature(node: ast.FunctionDef, name: str) -> str:
    """How it is called."""
    arguments = ast.unparse(node.args)
    for own in ("self, ", "cls, ", "self", "cls"):
        if arguments.startswith(own):
            arguments = arguments.removeprefix(own)
            break
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and name != "__init__" else ""
    return f"{arguments}{returns}" if name == "__init__" else f"{name}({arguments}){returns}"


def told(node: ast.ClassDef | ast.FunctionDef) -> str:
    """Its docstring."""
    return ast.get_docstring(node) or ""


def decorators(node: ast.FunctionDef) -> set[str]:
    """Their names."""
    return {ast.unparse(each) for each in node.decorator_list}


def lines_of(name: str, node: ast.ClassDef) -> list[str]:
    """One class."""
    lines = [f"## {name}", ""]
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    for each in methods:
        if each.name == "__init__" and name[-5:] != "Error":
            lines += ["```text", f"{name}({signature(each, '__init__')})", "```", ""]
    lines += [told(node), ""] if told(node) else []
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and name[-5:] != "Error"]
    fields = [each for each in fields if not ast.unparse(each.target).startswith("_")]
    if fields and ast.unparse(node.bases[0] if node.bases else ast.Constant("")).endswith("Record"):
        lines += ["```text", *(ast.unparse(each) for each in fields), "```", ""]
    for each in methods:
        if each.name.startswith("_") or not told(each):
            continue
        kind = "property " if "property" in decorators(each) else ""
        kind = "classmethod " if "classmethod" in decorators(each) else kind
        head = f"{each.name}: {ast.unparse(each.returns)}" if kind == "property " and each.returns else ""
        lines += ["```text", f"{kind}{head or signature(each, each.name)}", "```", "", told(each), ""]
    return lines


def page() -> str:
    """All of it."""
    lines = [HEAD]
    found = exports()
    for name in sorted(found, key=lambda name: (name.endswith("Error"), name)):
        for node in parse(found[name]).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                lines += lines_of(name, node)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
