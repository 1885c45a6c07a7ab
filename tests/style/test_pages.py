"""The code blocks of the pages: every one is run by a test, or says why not."""

from __future__ import annotations

import re

from style.source import report
from vm.pages import FILES, TASKS, Block, blocks

#: who or where runs a block of a shell
_KINDS = {"", "user", "docker", "online", "offline"}
_FENCE = re.compile(r"^```", re.MULTILINE)


def _findings(found: list[Block], right) -> list[str]:
    return [f"{block.name}: {block.language} {block.kind}" for block in found if not right(block)]


def test_every_block_of_a_shell_is_run_or_says_why_not():
    found = [block for block in blocks() if block.language == "sh"]
    assert len([block for block in found if not block.kind]) > 5
    report(_findings(found, lambda block: block.kind in _KINDS or block.kind.startswith("no-run: ")))


def test_every_block_of_a_task_is_run_used_or_what_another_prints():
    found = blocks(TASKS.glob("*.md"))
    printed = [block.printed for block in found if block.printed is not None]
    rest = [block for block in found if not (block.language == "text" and block.text in printed)]
    shown = [block for block in rest if block.language in ("toml", "json")]
    assert sorted((block.page.name, block.language) for block in shown) == sorted(FILES)
    runs = [block for block in rest if block not in shown]
    report(_findings(runs, lambda block: block.language in ("sh", "python") and block.kind in _KINDS))


def test_every_fence_is_one_of_a_block():
    for page in TASKS.glob("*.md"):
        assert len(_FENCE.findall(page.read_text())) == 2 * len(blocks([page])), page.name
