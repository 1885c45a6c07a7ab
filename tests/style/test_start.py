"""What a verb imports is what a caller waits for: `state` is polled, so it pulls in nothing slow."""

from __future__ import annotations

import subprocess

import pytest

from bufferzone import state
from style.source import PACKAGE

#: modules whose import costs as much as a third of a bare interpreter, or that bring one of those in
SLOW = {
    *("json", "re", "typing", "enum", "argparse", "dataclasses", "collections", "functools", "contextlib"),
    *("asyncio", "socket", "subprocess", "logging", "tempfile", "shutil", "threading", "ctypes"),
}
PYTHON = "/usr/bin/python3"
RUN = """
import sys
sys.path.insert(0, {source!r})
from bufferzone.cli.main import main
status = main({words!r})
print("\\n" + " ".join(sys.modules))
sys.exit(status)
"""


def modules_after(*words: str) -> tuple[set[str], str]:
    """The modules that one command line loaded into a bare interpreter, and what it printed."""
    program = RUN.format(source=str(PACKAGE.parent), words=words)
    done = subprocess.run([PYTHON, "-IS", "-B", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed, _, names = done.stdout.rstrip().rpartition("\n")
    return set(names.split()), printed


def test_state_imports_nothing_slow(tmp_path):
    directory = state.create(str(tmp_path), "one")
    facts = {"pid": 0, "bundle": "/b", "rootfs": "/b/r", "created": "2026-01-01T00:00:00Z", "owner": "root"}
    state.write_state(directory, id="one", status=state.STOPPED, annotations={"a": "b"}, **facts)
    loaded, printed = modules_after("--root", str(tmp_path), "state", "one")
    assert '"status": "stopped"' in printed
    assert loaded & SLOW == set()


@pytest.mark.parametrize("verb", ["create", "start", "kill", "delete", "exec", "state"])
def test_a_verb_says_what_it_takes_without_importing_an_event_loop(verb):
    loaded, printed = modules_after(verb, "--help")
    assert verb in printed
    assert loaded & {"asyncio", "argparse", "typing", "dataclasses", "logging"} == set()


def test_a_run_of_an_image_that_is_there_imports_nothing_that_it_does_not_need():
    program = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import bufferzone.cli.bz.run"
    words = [PYTHON, "-IS", "-B", "-c", f"{program}; print(*sys.modules)"]
    loaded = set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert "bufferzone.images.fetch" in loaded
    assert loaded & {"re", "enum", "subprocess", "tempfile", "shutil", "base64", "random", "hashlib"} == set()


def test_exec_imports_neither_the_settings_nor_what_makes_containers():
    loaded, _ = modules_after("exec", "--help")
    strangers = (
        "config",
        "egress",
        "toml",
        "setting",
        "settings_file",
        "oci.overrides",
        "client.start",
        "client.create",
        "client.removal",
        "client.detach",
        "client.handshake",
        "client.console",
        "programs",
        "oci.cri",
        "oci.mounts",
    )
    assert loaded & {f"bufferzone.{name}" for name in strangers} == set()


def test_a_shim_imports_nothing_that_costs_more_than_it_gives():
    """Its imports are a third of its CPU time in a warm start; `record` has the figures for dataclasses."""
    program = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import bufferzone.shim.daemon as _\n"
    words = [PYTHON, "-IS", "-B", "-c", f"{program}print(*sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    costly = {"dataclasses", "inspect", "ast", "typing", "secrets", "shutil", "tempfile", "urllib.parse"}
    assert set(done.stdout.split()) & costly == set()


def test_containerds_start_of_a_container_whose_shim_is_there_imports_nothing_slow():
    program = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import bufferzone.shim.start"
    words = [PYTHON, "-IS", "-B", "-c", f"{program}; print(*sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "bufferzone.shim.address" in loaded
    assert loaded & SLOW == set()
    assert loaded & {"bufferzone.shim.daemon", "bufferzone.config", "bufferzone.sandbox"} == set()


def test_neither_a_shim_nor_containerds_start_loads_openssl():
    program = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import bufferzone.shim.start\n"
    program += "import bufferzone.shim.daemon\nimport bufferzone.pool.worker\nprint(*sys.modules)"
    done = subprocess.run([PYTHON, "-IS", "-B", "-c", program], capture_output=True, text=True, check=True)
    assert "bufferzone.digest" in done.stdout.split()
    assert "_hashlib" not in done.stdout.split()
