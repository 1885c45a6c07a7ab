"""The project's own Python files, parsed once, for the tests of this folder."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "bufferzone"


@dataclass(frozen=True, slots=True)
class Source:
    """One file: `name` is its path below the repository, `module` its path below the package, `unit` the row
    of the layers table that it belongs to."""

    name: str
    module: str
    text: str
    tree: ast.Module

    @property
    def unit(self) -> str:
        return self.module.split("/")[0].removesuffix(".py")

    def within(self, *prefixes: str) -> bool:
        return self.module.startswith(prefixes)

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.name}:{getattr(node, 'lineno', 1)}: {message}"


@dataclass(frozen=True, slots=True)
class Import:
    """`target` is dotted; `runs` is false below `if TYPE_CHECKING:`."""

    node: ast.AST
    target: str
    runs: bool


@functools.cache
def package() -> tuple[Source, ...]:
    """Every module of the package."""
    return tuple(_parse(path) for path in sorted(PACKAGE.rglob("*.py")))


@functools.cache
def everything() -> tuple[Source, ...]:
    """The package, the tests and the scripts."""
    others = [*sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
    return (*package(), *(_parse(path) for path in others))


def from_tests() -> list[Source]:
    return [source for source in everything() if source.name.startswith("tests/")]


def _parse(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    module = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else name
    return Source(name, module, text, ast.parse(text, filename=name))


def imports(source: Source) -> list[Import]:
    """Every import statement, also inside functions."""
    return [*_imports(source, source.tree, True)]


def _imports(source: Source, node: ast.AST, runs: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(node, alias.name, runs)
    elif isinstance(node, ast.ImportFrom):
        origin = _origin(source, node)
        for alias in node.names:
            yield Import(node, _target(origin, alias.name), runs)
    elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for child in node.body:
            yield from _imports(source, child, False)
        for child in node.orelse:
            yield from _imports(source, child, runs)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(source, child, runs)


def _origin(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    here = ["bufferzone", *source.module.split("/")][: -node.level]
    return ".".join([*here, *([node.module] if node.module else [])])


def _target(origin: str, name: str) -> str:
    """`from bufferzone.wire import task` imports bufferzone.wire.task, not only bufferzone.wire."""
    path = PACKAGE.parent.joinpath(*origin.split("."), name)
    return f"{origin}.{name}" if path.with_suffix(".py").exists() or path.is_dir() else origin


def dotted(node: ast.AST) -> str:
    """`os.path.join` for that expression, empty for anything that is no chain of names."""
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return node.id if isinstance(node, ast.Name) else ""


def names_used(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) of every name and attribute, and of names bound by `from module import name`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.Attribute):
            name = dotted(node)
            if name:
                yield node, name


def report(findings: list[str]) -> None:
    """Fail with every finding on a line of its own."""
    if findings:
        pytest.fail("\n" + "\n".join(sorted(findings)), pytrace=False)
