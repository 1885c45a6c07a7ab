"""The pages that people read: short where they begin, and true to the code."""

from __future__ import annotations

import importlib.util
import re

import pytest

from bufferzone.cli.bz import VERBS
from style.source import PACKAGE, ROOT, report

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#]+)\)")
FILE = re.compile(r"`((?:\w+/)+\w+\.py)`")
FIRST = re.compile(r"\*\*Eight files to read first\*\*.*?\n\n", re.DOTALL)


@pytest.mark.parametrize(("name", "least", "most"), [("README.md", 100, 120), ("ARCHITECTURE.md", 1, 180)])
def test_the_first_pages_are_short(name, least, most):
    assert least <= len((ROOT / name).read_text().splitlines()) <= most


def printer(name):
    """A script that prints a page."""
    described = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    found = importlib.util.module_from_spec(described)
    described.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", ["settings", "vmms"])
def test_a_page_of_tables_is_printed_from_what_the_code_has(name):
    printed = (ROOT / "docs" / f"{name}.md").read_text()
    assert printed == printer(f"{name}_page").page(), f"run: scripts/{name}_page.py >docs/{name}.md"


def test_the_page_of_the_library_is_printed_from_its_docstrings():
    found = printer("api_page")
    printed = (ROOT / "docs" / "api.md").read_text()
    assert printed == found.page(), "run: scripts/api_page.py >docs/api.md"
    assert {name for name in found.exports() if f"\n## {name}\n" not in printed} == set()


def test_the_table_of_the_jails_is_written_from_the_code_that_makes_them():
    described = importlib.util.spec_from_file_location("jail_table", ROOT / "scripts" / "jail_table.py")
    printer = importlib.util.module_from_spec(described)
    described.loader.exec_module(printer)
    page = (ROOT / "SECURITY.md").read_text()
    helpers, shim = printer.table().split("\n\n")
    assert (len(helpers.splitlines()), len(shim.splitlines())) == (9, 21)
    assert page == printer.page(page), "run: scripts/jail_table.py"


def test_every_room_that_the_map_has_is_there():
    page = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = page.partition("| room | what it answers for |\n")[2].partition("\n\n")[0].splitlines()[1:]
    names = [name for row in rooms for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(names) > 30
    assert [
        name for name in names if not any((PACKAGE / f"{name}{end}").exists() for end in ("", ".py"))
    ] == []


def test_every_command_of_bz_is_on_its_page():
    page = (ROOT / "docs" / "bz.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"`bz {verb}\b", page)] == []


def test_every_link_between_pages_leads_to_a_file():
    findings = []
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                findings.append(f"{page.relative_to(ROOT)}: no such file: {target}")
    report(findings)


def test_every_module_and_test_that_a_page_names_is_there():
    findings = []
    for page in PAGES:
        for name in FILE.findall(page.read_text()):
            if not any((place / name).exists() for place in (ROOT, PACKAGE, ROOT / "tests")):
                findings.append(f"{page.relative_to(ROOT)}: no such file: {name}")
    report(findings)


def test_the_map_names_every_room_and_every_module_beside_them():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {room for room in rooms if f"`{room}/`" not in text} == set()
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert {module for module in modules if f"`{module}`" not in text} == set()


def test_the_eight_files_to_read_first_are_short_and_hold_the_climax():
    found = FIRST.search((ROOT / "ARCHITECTURE.md").read_text())
    assert found is not None
    texts = {name: (PACKAGE / name).read_text() for name in FILE.findall(found[0])}
    assert len(texts) == 8
    lines = sum(len(text.splitlines()) for text in texts.values())
    assert lines < 1600, f"{lines} lines: choose shorter ones in ARCHITECTURE.md, or make them shorter"
    together = "".join(texts.values())
    assert "class Containers:" in together
    assert "os.execve(" in together
