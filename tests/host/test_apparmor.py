"""AppArmor as Debian switches it on: it denies nothing that a start needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from host.conftest import podman, run

#: what Debian 13 has for it allows everything; of two that fit one program the kernel takes none
SHIPPED = Path("/etc/apparmor.d/virtiofsd")
PROFILE = "virtiofsd" if SHIPPED.exists() else "bufferzone-host-check"
RULES = f"""
profile {PROFILE} /usr/{{libexec,lib/qemu,bin}}/virtiofsd {{
}}
"""


def test_apparmor_is_on_and_denies_nothing_of_a_start(image):
    assert Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    assert podman("run", "--rm", image, "echo", "answer") == "answer"
    denied = [line for line in run("dmesg").splitlines() if 'apparmor="DENIED"' in line]
    assert denied == []


@pytest.fixture
def profile(tmp_path):
    """A profile that allows virtiofsd nothing."""
    rules = tmp_path / "profile"
    rules.write_text(RULES)
    run("apparmor_parser", "--replace", "--skip-cache", str(rules))
    yield
    if SHIPPED.exists():
        run("apparmor_parser", "--replace", "--skip-cache", str(SHIPPED))
    else:
        run("apparmor_parser", "--remove", "--skip-cache", str(rules))


def test_a_profile_that_denies_what_a_helper_needs_is_named_with_what_it_denied(image, profile):
    words = ("podman", "--runtime", "bufferzone", "run", "--rm", image, "true")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode != 0
    assert f"AppArmor profile {PROFILE} denied " in done.stderr
    assert run("bufferzone", "list", "--quiet") == ""
