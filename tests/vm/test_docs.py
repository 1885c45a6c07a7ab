"""The shell blocks of the pages, run as they stand, with this checkout's programs and a state of their own.

What follows the word `sh` in a block's first line says how it runs: nothing: with podman, bufferzone and bz;
`no-run: WHY`: not here.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vm.podman import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```sh ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
TIMEOUT_S = 300

_PODMAN = """#!/usr/bin/python3 -IS
import os, sys
words = sys.argv[1:]
if words[:2] == ["--runtime", "bufferzone"]:  # this checkout's, which the options below name
    del words[:2]
if words[0] == "run":
    words[1:1] = {run!r}
os.execv("/usr/bin/podman", [*{options!r}, *words])
"""
_BZ = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {source!r})
from bufferzone.cli.bz.main import main
sys.exit(main(["--root", {state!r}, *sys.argv[1:]]))
"""


def blocks(kind: str) -> list[object]:
    """(page:line, text) of every block with that word behind `sh`."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in BLOCK.finditer(text):
            if block[1].partition(":")[0] == kind:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(block[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", text],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT_S,
    )


@pytest.fixture(scope="module")
def programs(podman):
    """The environment of a block: podman, bufferzone and bz on the PATH, and an image named busybox."""
    folder = podman.program.parent
    options, words = podman.argv("X")[:-1], podman.argv("run")
    write_program(folder / "podman", _PODMAN.format(options=options, run=words[len(options) + 1 :]))
    write_program(folder / "bz", _BZ.format(source=str(ROOT / "src"), state=str(podman.state)))
    podman("tag", podman.image, "localhost/busybox")
    environment = podman.environment()
    return {**environment, "PATH": f"{folder}:{environment['PATH']}"}


@pytest.mark.parametrize("text", blocks(""))
def test_a_block_of_the_pages_runs(programs, text):
    done = run(text, programs)
    assert done.returncode == 0, (text, done.stdout.decode(), done.stderr.decode())


def test_every_block_is_run_or_says_why_not():
    kinds = {block[1] for page in PAGES for block in BLOCK.finditer(page.read_text())}
    assert len(blocks("")) > 5
    assert all(kind == "" or re.fullmatch(r"no-run: .+", kind) for kind in kinds)
