"""`bz audit` on sandboxes that run: no wall is missing, and one that is taken away is seen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bufferzone.model import ImageRef
from vm.verbs import bundle
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
