"""`podman build`: the steps of a Containerfile run in VMs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]


def test_a_build_with_a_volume_below_directories_that_are_not_there_runs_what_follows(
    podman, tmp_path: Path
) -> None:
    lines = ("VOLUME /a/b/c", "RUN echo lost >/a/b/c/file; echo kept >/kept; ls -d /a/b/c")
    (tmp_path / "Containerfile").write_text("\n".join((f"FROM {podman.image}", *lines, "")))
    try:
        words = ("--network", "none", "--isolation", "oci", "--tag", "built", tmp_path)
        done = podman("build", *words, timeout_s=300)
        assert "/a/b/c" in done.lines
        script = "cat /kept; ls /a/b/c"
        # podman-build(1), --compat-volumes: what RUN changes in a volume is undone only on demand by now
        keeps = "--compat-volumes" in podman("build", "--help").text
        expected = ["kept", "file"] if keeps else ["kept"]
        assert podman("run", "--rm", "built", "sh", "-c", script).lines == expected
    finally:
        podman.any("rmi", "--force", "built")
