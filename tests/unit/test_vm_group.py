"""The cgroup of a container as systemd's scope: what is recorded, joined, and refused."""

from __future__ import annotations

import pytest

from bufferzone.cli.oci import create
from bufferzone.errors import HostError, SpecError
from bufferzone.oci import Spec
from bufferzone.systemd import scope
from bufferzone.vm import cgroups, group

FORM = "machine.slice:libpod:1"


class Left:
    """Of `Leftovers` the scopes, and when they were recorded."""

    def __init__(self, order):
        self.order = order

    def add_scope(self, unit):
        self.order.append(("recorded", unit))

    def drop_scope(self, unit):
        self.order.append(("dropped", unit))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with systemd and the unified hierarchy, whose scopes appear when they are started."""
    order, place = [], tmp_path / "machine.slice" / "libpod-1.scope"

    def start(unit, slice_, pids, description):
        order.append(("started", unit, slice_, tuple(pids), description))
        place.mkdir(parents=True)
        (place / "cgroup.procs").write_text("")

    monkeypatch.setattr("bufferzone.systemd.is_there", lambda: True)
    monkeypatch.setattr(scope, "start", start)
    monkeypatch.setattr(scope, "attach", lambda unit, pid: order.append(("attached", unit, pid)))
    monkeypatch.setattr(cgroups, "of_process", lambda pid: "0::/machine.slice/libpod-1.scope\n")
    monkeypatch.setattr(cgroups, "_mountinfo", lambda: f"31 30 0:27 / {tmp_path} rw - cgroup2 cgroup2 rw")
    monkeypatch.setattr(cgroups, "_made", set())
    return order, place


def test_a_scope_is_recorded_before_it_is_made_and_is_ours_to_limit(machine):
    order, place = machine
    made = group.group_of(FORM, "c")
    made.begin([5, 6], Left(order))()
    assert order == [
        ("recorded", "libpod-1.scope"),
        ("started", "libpod-1.scope", "machine.slice", (5, 6), "bufferzone container c"),
    ]
    assert made.path == "machine.slice/libpod-1.scope"
    assert cgroups.is_ours(str(place))


def test_a_scope_that_was_refused_is_not_for_the_clean_up_to_end_since_it_may_be_anothers(
    machine, monkeypatch
):
    order, _ = machine

    def refuse(*_):
        raise HostError("the unit exists")

    monkeypatch.setattr(scope, "start", refuse)
    with pytest.raises(HostError):
        group.group_of(FORM, "c").begin([5], Left(order))
    assert order == [("recorded", "libpod-1.scope"), ("dropped", "libpod-1.scope")]


def test_the_scope_of_one_process_of_a_shared_vm_is_forgotten_when_it_ends(machine):
    order, _ = machine
    group.group_of(FORM, "c").begin_for_one(5, Left(order))()
    assert order[-1] == ("dropped", "libpod-1.scope")


def test_a_process_joins_a_scope_by_itself_or_by_systemd(machine, monkeypatch):
    order, place = machine
    made = group.group_of(FORM, "c")
    made.begin([5], Left(order))
    made.join(7)
    assert (place / "cgroup.procs").read_text() == "7"

    def refuse(path, text):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(cgroups, "write_file", refuse)
    made.join(8)
    assert order[-1] == ("attached", "libpod-1.scope", 8)


def test_a_scope_that_systemd_took_away_is_not_made_anew_behind_its_back(machine):
    order, place = machine
    made = group.group_of(FORM, "c")
    made.begin([5], Left(order))
    (place / "cgroup.procs").unlink()
    place.rmdir()
    with pytest.raises(HostError, match=r"systemd has ended libpod-1\.scope"):
        made.join(7)
    assert not place.exists()


@pytest.mark.parametrize(
    ("path", "systemd", "there", "unit"),
    [
        (FORM, False, True, "libpod-1.scope"),
        (FORM, False, False, ""),
        ("/plain", False, True, ""),
        ("", True, True, "bufferzone-c.scope"),
        ("", False, True, ""),
        (":cri-containerd:1", True, True, "cri-containerd-1.scope"),
    ],
)
def test_who_asks_for_a_scope_gets_one_where_systemd_is(path, systemd, there, unit, monkeypatch):
    monkeypatch.setattr("bufferzone.systemd.is_there", lambda: there)
    assert group.group_of(path, "c", systemd=systemd).unit == unit


def test_the_flag_needs_systemd_and_its_form(monkeypatch):
    monkeypatch.setattr("bufferzone.systemd.is_there", lambda: True)
    assert create._wants_scope(Spec({"linux": {}}, "/b"))
    assert not create._wants_scope(Spec({"linux": {"cgroupsPath": FORM}}, "/b"))
    with pytest.raises(SpecError, match=r"linux\.cgroupsPath: expected slice:prefix:name .* '/x/y'"):
        create._wants_scope(Spec({"linux": {"cgroupsPath": "/x/y"}}, "/b"))
    monkeypatch.setattr("bufferzone.systemd.is_there", lambda: False)
    with pytest.raises(HostError, match="systemd does not run on this host") as told:
        create._wants_scope(Spec({"linux": {"cgroupsPath": FORM}}, "/b"))
    assert "--cgroup-manager cgroupfs" in told.value.hint
