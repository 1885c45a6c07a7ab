"""The pages that people read: short where they begin, and true to the code."""

from __future__ import annotations

import importlib.util
import re

import pytest

from style.source import ROOT, report

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#]+)\)")


@pytest.mark.parametrize(("name", "least", "most"), [("README.md", 100, 120), ("ARCHITECTURE.md", 1, 180)])
def test_the_first_pages_are_short(name, least, most):
    assert least <= len((ROOT / name).read_text().splitlines()) <= most


def test_the_page_of_the_settings_is_printed_from_their_table():
    described = importlib.util.spec_from_file_location("settings_page", ROOT / "scripts" / "settings_page.py")
    printer = importlib.util.module_from_spec(described)
    described.loader.exec_module(printer)
    printed = (ROOT / "docs" / "settings.md").read_text()
    assert printed == printer.page(), "run: scripts/settings_page.py >docs/settings.md"


def test_every_link_between_pages_leads_to_a_file():
    findings = []
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                findings.append(f"{page.relative_to(ROOT)}: no such file: {target}")
    report(findings)
