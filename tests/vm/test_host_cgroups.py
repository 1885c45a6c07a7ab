"""The host's cgroup of a container: whose limits are in it, and what is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.verbs import Runtime, bundle, config

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

ROOT = Path("/sys/fs/cgroup")
NAME = "bufferzone-test-cgroup"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    found = Runtime(tmp_path / "root")
    yield found
    found.close()


def left() -> list[Path]:
    return [*ROOT.glob(f"*/{NAME}*"), *ROOT.glob(f"{NAME}*")]


def found(file: str) -> str:
    return next(path.read_text().strip() for at in left() if (path := at / file).exists())


def limited(directory: Path, limit: int, path: str = f"/{NAME}", command: str = "exec sleep 1000") -> Path:
    linux: dict[str, Any] = {**config("")["linux"], "resources": {"pids": {"limit": limit}}}
    if path:
        linux["cgroupsPath"] = path
    return bundle(directory, command, linux=linux)


def test_a_run_in_the_foreground_leaves_no_cgroup_and_the_next_ones_limits_take(
    runtime: Runtime, tmp_path: Path
) -> None:
    runtime.ok("run", "--bundle", str(limited(tmp_path / "one", 500, command="exit 0")), "one")
    assert left() == []
    runtime.run("two", limited(tmp_path / "two", 100))
    assert found("pids.max") == str(256 + 8 * 100)
    runtime.ok("delete", "--force", "two")
    assert left() == []


def test_an_empty_cgroup_that_is_there_is_limited_and_a_frozen_one_refused(
    runtime: Runtime, tmp_path: Path
) -> None:
    freezer = ROOT / "freezer"
    if not freezer.is_dir():
        pytest.skip("this host has no cgroup v1 freezer")
    for name in ("pids", "freezer"):
        (ROOT / name / NAME).mkdir()
    (freezer / NAME / "freezer.state").write_text("FROZEN")
    one = limited(tmp_path / "one", 100)
    try:
        refused = runtime.try_create("one", one)
        assert "container's cgroup unexpectedly frozen" in refused.line
    finally:
        (freezer / NAME / "freezer.state").write_text("THAWED")
    runtime.run("one", one)
    assert found("pids.max") == str(256 + 8 * 100)
    runtime.ok("delete", "--force", "one")
    assert left() == []


def test_limits_without_a_path_hold_on_the_host_in_a_cgroup_of_the_containers_name(
    runtime: Runtime, tmp_path: Path
) -> None:
    runtime.run(f"{NAME}-id", limited(tmp_path / "one", 100, path=""))
    assert found("pids.max") == str(256 + 8 * 100)
    runtime.ok("delete", "--force", f"{NAME}-id")
    assert left() == []
