"""The code blocks of the pages that people read, and programs that run them as they stand.

What follows the language in a block's first line says how it runs: nothing: as root, with podman, bufferzone
and bz, or the library; `user`: as an ordinary user; `docker`: with a dockerd; `online` and then `offline`: on
two machines; `no-run: WHY`: not here. In docs/tasks a block of `text` right after one that runs is what that
one prints.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from vm.podman import ROOT

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
TASKS = ROOT / "docs" / "tasks"
_BLOCK = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```\n(?=\n```(text)\n((?:.*\n)*?)```$)?", re.MULTILINE)
#: files that pages of tasks show: a test of the name behind them uses each
FILES = {
    ("untrusted-code.md", "toml"): "vm/test_docs.py",
    ("podman.md", "toml"): "vm/test_docs.py",
    ("agent.md", "json"): "vm/test_docs.py",
    ("docker.md", "json"): "vm/test_docker.py",
}
_TIMEOUT_S = 300
_PODMAN = """#!/usr/bin/python3 -IS
import os, sys
words = sys.argv[1:]
if words[:2] == ["--runtime", "bufferzone"]:  # this checkout's, which the options below name
    del words[:2]
if words[0] == "run":
    words[1:1] = {run!r}
    if "--network" not in words:
        words[1:1] = ["--network", "none"]
os.execv("/usr/bin/podman", ["podman", *{options!r}, *words])
"""
_OURS = """#!{python}
import sys
sys.path.insert(0, {source!r})
from bufferzone import state
state.runtime_root = lambda flag="": {root!r}
from {module} import main
sys.exit(main(sys.argv[1:]))
"""
_LIBRARY = """
import sys
sys.path.insert(0, {source!r})
from bufferzone import state
state.runtime_root = lambda flag="": {root!r}
"""


class Block:
    """One block: `text` as it stands; `printed` is None where the page does not say it."""

    def __init__(self, page: Path, found: re.Match[str]) -> None:
        self.page, self.language, self.kind, self.text = page, found[1], found[2], found[3]
        line = found.string.count("\n", 0, found.start()) + 1
        self.name = f"{page.relative_to(ROOT)}:{line}"
        self.printed = found[5] if page.parent == TASKS and found[1] in ("sh", "python") else None


def blocks(pages: Iterable[Path] = PAGES) -> list[Block]:
    """All of them, in order."""
    return [Block(page, found) for page in pages for found in _BLOCK.finditer(page.read_text())]


def params(language: str, kind: str = "", *, without: Iterable[Path] = ()) -> list[object]:
    """Those of a kind, for `parametrize`."""
    return [
        pytest.param(block, id=block.name)
        for block in blocks(page for page in PAGES if page not in without)
        if block.language == language and block.kind == kind
    ]


def file_of(page: str, language: str) -> str:
    """The one file of that language that a page of docs/tasks shows; one of `FILES`."""
    assert (page, language) in FILES
    (found,) = (block for block in blocks([TASKS / page]) if block.language == language)
    return found.text


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def write_podman(path: Path, options: list[str], run: list[str]) -> None:
    """A `podman` with these options, and `run` with these; without a network where the block names none."""
    write_program(path, _PODMAN.format(options=options, run=run))


def write_ours(path: Path, module: str, root: Path, python: str = "/usr/bin/python3 -IS") -> None:
    """A program of this checkout, with the state root `root`."""
    source = ROOT / "src"
    text = _OURS.format(python=python, source=str(source), root=str(root), module=module)
    write_program(path, text)


def shell(text: str, before: Iterable[str] = ()) -> list[str]:
    """The command line of a block of `sh`."""
    return [*before, "/bin/bash", "-euo", "pipefail", "-c", text]


def python(text: str, root: Path) -> list[str]:
    """The command line of a block of `python`."""
    head = _LIBRARY.format(source=str(ROOT / "src"), root=str(root))
    return [sys.executable, "-I", "-c", head + text]


def run(block: Block, argv: list[str], environment: Mapping[str, str], cwd: Path) -> str:
    """What the block printed; it has to end well."""
    done = subprocess.run(
        argv,
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, (block.name, block.text, out, err)
    return out
