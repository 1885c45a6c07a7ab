"""AppArmor as Debian switches it on: it denies nothing that a start needs."""

from __future__ import annotations

from pathlib import Path

from host.conftest import podman, run


def test_apparmor_is_on_and_denies_nothing_of_a_start(image):
    assert Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    assert podman("run", "--rm", image, "echo", "answer") == "answer"
    denied = [line for line in run("dmesg").splitlines() if 'apparmor="DENIED"' in line]
    assert denied == []
