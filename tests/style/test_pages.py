"""The code blocks of the pages: every one is run by a test, or says why not."""

from __future__ import annotations

import re

from style.source import report
from vm.pages import TASKS, Block, blocks

#: how blocks of docs/tasks may begin; files are used by the tests that name their page
_RUN = {("sh", ""), ("sh", "user"), ("sh", "docker"), ("python", "")}
_FENCE = re.compile(r"^```", re.MULTILINE)


def _findings(found: list[Block], right) -> list[str]:
    return [f"{block.name}: {block.language} {block.kind}" for block in found if not right(block)]


def test_every_block_of_a_shell_is_run_or_says_why_not():
    found = [block for block in blocks() if block.language == "sh"]
    assert len([block for block in found if not block.kind]) > 5
    report(
        _findings(found, lambda block: block.kind in ("", "user", "docker") or block.kind[:8] == "no-run: ")
    )


def test_every_block_of_a_task_is_run_used_or_what_another_prints():
    files = {("toml", ""), ("json", "")}
    found = blocks(TASKS.glob("*.md"))
    printed = [block.printed for block in found if block.printed is not None]
    rest = [block for block in found if not (block.language == "text" and block.text in printed)]
    report(_findings(rest, lambda block: (block.language, block.kind) in _RUN | files))


def test_every_fence_is_one_of_a_block():
    for page in TASKS.glob("*.md"):
        assert len(_FENCE.findall(page.read_text())) == 2 * len(blocks([page])), page.name
