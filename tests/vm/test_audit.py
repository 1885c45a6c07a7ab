"""`bz audit` on sandboxes that run: no wall is missing, and one that is taken away is seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from vm.verbs import PROGRAM, bundle
from vm.warm import Warm

pytestmark = pytest.mark.vm


@pytest.fixture
def warm(tmp_path: Path, guest_image: ImageRef) -> Iterator[Warm]:
    warm = Warm(tmp_path / "warm", guest_image, templates=False)
    warm.runtime.run("one", bundle(tmp_path / "bundle", "echo up; exec sleep 1000")).expect("up")
    yield warm
    warm.runtime.close()


def test_a_default_sandbox_lacks_no_wall_and_a_wall_taken_away_is_seen(warm: Warm, tmp_path: Path) -> None:
    made = warm.bz("audit", "--json", "--html", str(tmp_path / "page.html"))
    assert made.status == 0, made.out
    found = json.loads(made.out)
    assert found["counts"]["high"] == 0
    (sandbox,) = found["sandboxes"]
    roles = {process["role"]: process for process in sandbox["processes"]}
    assert {"shim", "waiter", "vmm", "virtiofsd"} <= roles.keys()
    assert roles["vmm"]["capabilities"] == []
    assert all(thread["seccomp"] == 2 for thread in roles["vmm"]["threads"])
    assert "vmm" in (tmp_path / "page.html").read_text()
    os.chmod(warm.runtime.root, 0o755)
    again = warm.bz("audit", "--json")
    assert again.status == 2
    assert "state-readable" in {each["id"] for each in json.loads(again.out)["findings"]}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_hypervisor_that_kept_a_capability_does_not_get_to_run_a_program(tmp_path: Path) -> None:
    """A fault of ours that nobody noticed: the jail of a copy of us keeps one capability."""
    root = Path(PROGRAM).parents[1]
    for name in ("bin", "src"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    driver = tmp_path / "src" / "bufferzone" / "vmm" / "qemu" / "driver.py"
    text, line = driver.read_text(), 'devices=("null", "urandom"),'
    assert text.count(line) == 1
    driver.write_text(text.replace(line, f'{line} capabilities=("CAP_NET_ADMIN",),'))
    words = [str(tmp_path / "bin" / "bz"), "run", "--network", "none", "--", "echo", "it ran"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done.stderr
    assert done.stderr.startswith("bz: a wall is missing: vmm ")
    assert "it holds CAP_NET_ADMIN, over the host" in done.stderr
