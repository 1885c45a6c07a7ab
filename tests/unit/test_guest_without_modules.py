"""A guest whose kernel has everything built in: nothing is asked of modprobe, and no NIC keeps a driver."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bufferzone.container import netfilter
from bufferzone.guest import modprobe, nic

NETWORK_ADMIN = {"capabilities": {"bounding": ["CAP_NET_ADMIN"]}}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have been started."""
    lines: list[list[str]] = []

    def posix_spawn(path: str, argv: list[str], env: dict[str, str]) -> int:
        lines.append(argv)
        return 4_194_304  # no process has this pid: the wait for it ends at once

    monkeypatch.setattr(os, "posix_spawn", posix_spawn)
    return lines


@pytest.mark.parametrize("there", [True, False])
def test_modprobe_runs_only_where_the_kernel_has_modules(
    started: list[list[str]], there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "modules"
    if there:
        listed.write_text("")
    monkeypatch.setattr(modprobe, "_LOADED", str(listed))
    monkeypatch.setattr(netfilter, "LOADED", str(listed))
    monkeypatch.setattr(netfilter, "MODULES", ("bz_no_such_module",))
    modprobe.modprobe("bz_no_such_module")
    assert len(started) == int(there)
    netfilter.load_for(NETWORK_ADMIN)
    assert len(started) == 2 * int(there)


def test_a_driver_that_is_there_from_the_start_is_taken_off_every_nic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, devices = tmp_path / "drivers/virtio_net", tmp_path / "devices"
    monkeypatch.setattr(nic, "_BUS", str(tmp_path))
    monkeypatch.setattr(nic, "_DRIVER", str(driver))
    nic.release_all()  # the stock guest: no driver, and nothing to look at
    driver.mkdir(parents=True)
    (driver / "unbind").write_text("")
    for name, kind in (("virtio0", "0x0003"), ("virtio1", "0x0001")):
        (devices / name / "driver").mkdir(parents=True)
        (devices / name / "device").write_text(f"{kind}\n")
    nic.release_all()
    assert (driver / "unbind").read_text() == "virtio1"
