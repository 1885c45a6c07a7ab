"""The shell blocks of the pages, run as they stand, with this checkout's programs and a state of their own.

What follows the word `sh` in a block's first line says how it runs: nothing: with podman, bufferzone and bz;
`no-run: WHY`: not here. A block that calls `ctr` has a containerd of ours, and "$IMAGE" is an image there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vm.podman import ROOT
from vm.test_containerd import containerd, image, shims

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```sh ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
TIMEOUT_S = 300
#: what a block needs that not every machine has
TOOLS = {"ctr ": ("containerd", "ctr"), "container checkpoint": ("criu",)}
__all__ = ["containerd", "image"]  # fixtures

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


def needs(text: str) -> list[str]:
    """The programs that are missing here for this block."""
    wanted = [name for word, names in TOOLS.items() if word in text for name in names]
    return [name for name in wanted if shutil.which(name) is None]


@pytest.fixture
def environment(programs, request):
    """What a block finds. It is asked for after the block is known: few need a containerd."""
    text = request.node.callspec.params["text"]
    if missing := needs(text):
        pytest.skip(f"not installed: {' '.join(missing)}")
    if "ctr " not in text:
        return programs
    daemon, image = (request.getfixturevalue(name) for name in ("containerd", "image"))
    ours = {"CONTAINERD_ADDRESS": daemon.socket, "CONTAINERD_NAMESPACE": "bz-test", "IMAGE": image}
    return {**programs, **ours}


@pytest.mark.parametrize("text", blocks(""))
def test_a_block_of_the_pages_runs(environment, text):
    done = run(text, environment)
    assert done.returncode == 0, (text, done.stdout.decode(), done.stderr.decode())
    said = done.stdout.decode().splitlines()
    if "echo hello" in text:
        assert said[0] == "hello"
    if "uname -r" in text:
        assert os.uname().release not in said
        assert any(re.match(r"\d+\.\d+", line) for line in said), said
    if "container restore saved" in text:
        assert said.count("saved") >= 2, said
    if "template make" in text:
        rows = [line.split() for line in said]
        assert [row[0] for row in rows].index("KEY") < len(rows) - 1, said  # and below it what was made
    if "ctr " in text:
        assert shims() == []


def test_every_block_is_run_or_says_why_not():
    kinds = {block[1] for page in PAGES for block in BLOCK.finditer(page.read_text())}
    assert len(blocks("")) > 5
    assert all(kind == "" or re.fullmatch(r"no-run: .+", kind) for kind in kinds)
