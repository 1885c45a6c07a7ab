"""Scopes: what systemd is asked, in which order, and what its refusals become. Its part is a stub."""

from __future__ import annotations

import os

import pytest

from bufferzone import systemd
from bufferzone.errors import HostError
from bufferzone.linux import identity
from bufferzone.systemd import bus, scope
from unit.systemd_stub import Manager, signal


@pytest.fixture
def manager(tmp_path, monkeypatch):
    path = str(tmp_path / "private")
    made = Manager(path)
    monkeypatch.setattr(bus, "sockets", lambda: [(path, True)])
    yield made
    made.close()


def test_a_scope_is_asked_for_with_its_slice_and_processes_and_goes_by_itself(manager):
    scope.start("a-b.scope", "machine.slice", [7, 8], "a container")
    ((unit, mode, properties, more),) = manager.asked("StartTransientUnit")
    assert (unit, mode, more) == ("a-b.scope", "fail", [])
    assert dict(properties) == {
        "Description": "a container",
        "PIDs": [7, 8],
        "Slice": "machine.slice",
        "CollectMode": "inactive-or-failed",
        "DefaultDependencies": 0,
        "Delegate": 1,
        "CPUAccounting": 1,
        "IOAccounting": 1,
        "MemoryAccounting": 1,
        "TasksAccounting": 1,
    }


def test_without_a_slice_the_manager_chooses(manager):
    scope.start("a.scope", "", [7], "x")
    assert "Slice" not in dict(manager.asked("StartTransientUnit")[0][2])


def test_a_predecessor_that_failed_is_taken_out_of_the_way(manager):
    manager.refusals["StartTransientUnit"] = ["UnitExists"]
    manager.before_answer = [signal("UnitRemoved", "so", ["a.scope", "/x"])]
    scope.start("a.scope", "", [7], "x")
    assert [name for name, _ in manager.calls] == [
        "StartTransientUnit",
        "ResetFailedUnit",
        "StartTransientUnit",
    ]


def test_one_that_stays_is_a_clash_of_names(manager, monkeypatch):
    monkeypatch.setattr(scope, "_CLASH_S", 0.05)
    manager.refusals["StartTransientUnit"] = ["UnitExists"] * 100
    with pytest.raises(HostError, match=r"make the scope a\.scope: StartTransientUnit is refused") as told:
        scope.start("a.scope", "", [7], "x")
    assert "has this name" in told.value.hint


def test_a_refusal_for_want_of_rights_says_so(manager):
    manager.refusals["StartTransientUnit"] = ["AccessDenied"]
    with pytest.raises(HostError, match=r"cannot make the scope a\.scope") as told:
        scope.start("a.scope", "", [7], "x")
    assert told.value.hint == "only root manages the machine's units"


def test_a_job_that_fails_is_one_line(manager):
    manager.result = "failed"
    with pytest.raises(HostError, match=r"did not make the scope a\.scope: its job ended with: failed"):
        scope.start("a.scope", "", [7], "x")


def test_a_scope_is_stopped_whether_it_is_there_or_not(manager):
    assert scope.stop("a.scope") == ""
    manager.refusals["StopUnit"] = ["NoSuchUnit", "AccessDenied"]
    assert scope.stop("a.scope") == ""
    assert "StopUnit is refused" in scope.stop("a.scope")
    manager.result = "timeout"
    assert scope.stop("a.scope") == "its job ended with: timeout"


def test_properties_are_set_for_this_boot_alone(manager):
    scope.set_properties("a.scope", {"TasksMax": ("t", 5)})
    assert manager.asked("SetUnitProperties") == [["a.scope", 1, [("TasksMax", 5)]]]


def test_a_bus_is_greeted_and_asked_for_signals(tmp_path):
    path = str(tmp_path / "bus")
    made = Manager(path)
    try:
        with bus.Bus.connect([(str(tmp_path / "none"), True), (path, False)]) as found:
            found.call("Reload")
    finally:
        made.close()
    assert [name for name, _ in made.calls] == ["Hello", "AddMatch", "Subscribe", "Reload"]


def test_no_manager_is_one_line_with_every_place_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "is_real_root", lambda: False)
    with pytest.raises(HostError, match="cannot reach systemd: /nowhere/a: no such file or directory, /now"):
        bus.Bus.connect([("/nowhere/a", True), ("/nowhere/b", False)])


def test_the_users_own_manager_is_asked_where_we_are_not_the_machines_root(monkeypatch):
    monkeypatch.setattr(identity, "is_real_root", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "tcp:host=x,port=1;unix:path=/s,guid=00;unix:abstract=/t")
    assert bus.sockets() == [("/run/user/7/systemd/private", True), ("/s", False), ("/run/user/7/bus", False)]
    monkeypatch.setattr(identity, "is_real_root", lambda: True)
    assert bus.sockets() == [("/run/systemd/private", True), ("/run/dbus/system_bus_socket", False)]


def test_systemd_is_there_where_it_says_so():
    assert systemd.is_there() == os.path.isdir("/run/systemd/system")
