"""What an ordinary user is advised who may not make namespaces."""

import os
import pwd

import pytest

from bufferzone.linux import userns


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that has everything; tests take something away. Paths are those of `tmp_path`."""
    user = pwd.getpwuid(os.getuid()).pw_name
    switches = [(str(tmp_path / os.path.basename(path)), off, say) for path, off, say in userns._SWITCHES]
    for (path, _, _), value in zip(switches, ("15000\n", "1\n", "0\n"), strict=True):
        (tmp_path / path).write_text(value)
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).write_text("#!/bin/true\n")
        (tmp_path / name).chmod(0o755)
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text(f"somebody:1:2\n{user}:100000:65536\n")
    monkeypatch.setattr(userns, "_SWITCHES", switches)
    monkeypatch.setattr(userns, "_PATH", str(tmp_path))
    monkeypatch.setattr(userns, "_SUBORDINATE", (str(tmp_path / "subuid"), str(tmp_path / "subgid")))
    return tmp_path


def test_who_has_everything_is_told_how_to_start_us(machine):
    assert userns.advice() == "without root, use a user namespace: podman unshare bufferzone ..."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_user_namespaces", "0"),
        ("unprivileged_userns_clone", "0"),
        ("apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_a_switch_that_is_off_is_named_with_what_turns_it_on(machine, name, value):
    (machine / name).write_text(f"{value}\n")
    assert "user namespaces are switched off: as root, sysctl " in userns.advice()
    assert f".{name}=" in userns.advice()


@pytest.mark.parametrize("name", ["newuidmap", "newgidmap"])
def test_a_missing_program_is_named_with_its_package(machine, name):
    (machine / name).unlink()
    assert userns.advice().startswith(f"{name} is missing: apt-get install uidmap; then podman unshare")


@pytest.mark.parametrize("name", ["subuid", "subgid"])
def test_a_user_without_subordinate_ids_is_told_the_command(machine, name):
    (machine / name).write_text("somebody:1:2\n")
    assert f"{machine / name} has no ids for " in userns.advice()
    assert "usermod --add-subuids" in userns.advice()
    (machine / name).unlink()
    assert "usermod --add-subuids" in userns.advice()


def test_a_kernel_without_the_switches_is_fine(machine):
    for path, _, _ in userns._SWITCHES:
        os.unlink(path)
    assert userns.advice().startswith("without root, use a user namespace")
