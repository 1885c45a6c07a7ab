"""Limits as systemd's properties: the same numbers as in the files, and back."""

from __future__ import annotations

import pytest

from bufferzone.errors import HostError
from bufferzone.sandbox import limits
from bufferzone.sandbox.unit_properties import properties_of, without
from bufferzone.vm import cgroups
from bufferzone.vm.group import Group

NONE = (1 << 64) - 1


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({"memory": {"limit": 1 << 28}}, {"MemoryMax": ("t", (256 + 4 + 512) << 20)}),
        ({"memory": {"limit": -1, "reservation": 7}}, {"MemoryMax": ("t", NONE), "MemoryLow": ("t", 7)}),
        ({"pids": {"limit": 10}}, {"TasksMax": ("t", 336)}),
        ({"pids": {"limit": -1}}, {"TasksMax": ("t", NONE)}),
        ({"cpu": {"shares": 1024}}, {"CPUWeight": ("t", 39)}),
        (
            {"cpu": {"quota": 33333, "period": 100000}},
            {"CPUQuotaPerSecUSec": ("t", 440000), "CPUQuotaPeriodUSec": ("t", 100000)},
        ),
        ({"cpu": {"quota": -1}}, {"CPUQuotaPerSecUSec": ("t", NONE), "CPUQuotaPeriodUSec": ("t", 100000)}),
        (
            {"cpu": {"cpus": "0-2,9", "mems": "0"}},
            {"AllowedCPUs": ("ay", [7, 2]), "AllowedMemoryNodes": ("ay", [1])},
        ),
        ({"blockIO": {"weight": 10}}, {"IOWeight": ("t", 1)}),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": m, "rate": 5} for m in (0, 1)]}},
            {"IOReadBandwidthMax": ("a(st)", [("/dev/block/8:0", 5), ("/dev/block/8:1", 5)])},
        ),
        ({}, {}),
    ],
)
def test_a_limit_is_the_property_that_writes_its_file(resources, wanted):
    assert properties_of(limits.cgroup_v2(resources, 256)) == wanted


def test_what_is_taken_back_is_as_in_a_new_unit():
    found = properties_of(
        limits.cgroup_v2(
            {"memory": {"limit": 1 << 28, "reservation": 7}, "cpu": {"cpus": "0", "shares": 5}}, 256
        )
    )
    assert without(found) == {
        "MemoryMax": ("t", NONE),
        "MemoryLow": ("t", 0),
        "CPUWeight": ("t", NONE),
        "AllowedCPUs": ("ay", []),
    }


class Unit(Group):
    """A scope whose properties are written down."""

    unit = "x.scope"

    def __init__(self, refuses=False):
        super().__init__("c")
        self.told, self.refuses = [], refuses

    def set_properties(self, properties):
        if self.refuses:
            raise HostError("systemd: unknown property")
        self.told.append(properties)


def test_an_update_tells_systemd_what_changed_and_takes_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "places", lambda relative: [str(tmp_path)])
    unit = Unit()
    before = {"pids": {"limit": 10}}
    changes = {"pids": {"limit": 10}, "cpu": {"shares": 1024}}
    take_back = limits.apply(unit, changes, 256, print, before)
    assert unit.told == [{"CPUWeight": ("t", 39)}]
    take_back()
    assert unit.told[1:] == [{"CPUWeight": ("t", NONE)}]
    limits.apply(unit, before, 256, print, before)
    assert len(unit.told) == 2


def test_a_property_that_systemd_refuses_is_a_line_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "places", lambda relative: [str(tmp_path)])
    lines = []
    limits.apply(Unit(refuses=True), {"pids": {"limit": 10}}, 256, lines.append)
    assert lines == ["x.scope: systemd: unknown property; its limits do not outlive a daemon-reload"]
