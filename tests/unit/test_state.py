"""The state directory: truth about status, ids, atomic files, removal that follows nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

from bufferzone import state
from bufferzone.errors import ExistsError, HostError, NotFoundError, UsageError

FACTS = {
    "pid": 42,
    "bundle": "/b",
    "rootfs": "/b/rootfs",
    "created": "2026-01-01T00:00:00.000000001Z",
    "owner": "root",
}


def write(directory, status, annotations=None, **more):
    facts = {**FACTS, "id": "one", "annotations": annotations or {}, **more}
    state.write_state(directory, status=status, **facts)


def dead_process():
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    child.wait()
    return child.pid


def test_state_is_printed_as_it_was_written_while_the_owner_lives(tmp_path):
    directory = state.create(str(tmp_path), "one")
    write(directory, state.RUNNING, {"key": 'va"l\nue', "bufferzone.x": "é"})
    text = state.state_text(directory)
    found = json.loads(text)
    assert list(found) == [
        "ociVersion",
        "id",
        "pid",
        "status",
        "bundle",
        "rootfs",
        "created",
        "owner",
        "annotations",
    ]
    assert (found["status"], found["pid"]) == ("running", 42)
    assert found["annotations"] == {"key": 'va"l\nue', "bufferzone.x": "é"}
    assert text.endswith(b"\n}\n")
    assert b'\n  "id": "one",\n' in text


def test_a_container_whose_owner_died_is_stopped_without_a_pid(tmp_path):
    directory = state.create(str(tmp_path), "one")
    write(directory, state.RUNNING, {"a": '\n  "status": "running",\n  "pid": 7,\n'})
    state.write_owner(directory, dead_process())
    found = state.read_state(directory)
    assert (found["status"], found["pid"]) == ("stopped", 0)
    assert found["annotations"]["a"] == '\n  "status": "running",\n  "pid": 7,\n'
    assert state.status(directory) == "stopped"


def test_a_process_with_the_owners_pid_but_another_start_is_not_the_owner(tmp_path):
    directory = state.create(str(tmp_path), "one")
    write(directory, state.RUNNING)
    start = state.process_start(os.getpid())
    (tmp_path / "one" / "owner").write_text(f"{os.getpid()} {start + 1}\n")
    assert state.owner_pid(directory) == 0
    assert state.status(directory) == "stopped"


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert state.process_start(child.pid) == 0
    child.wait()


def test_a_stopped_state_has_no_pid_whatever_is_written(tmp_path):
    directory = state.create(str(tmp_path), "one")
    write(directory, state.STOPPED)
    assert state.read_state(directory)["pid"] == 0


@pytest.mark.parametrize("owner", ["", "12", "x y", "-1 5", "12 34 56", "\0"])
def test_an_unreadable_owner_counts_as_dead(tmp_path, owner):
    directory = state.create(str(tmp_path), "one")
    (tmp_path / "one" / "owner").write_text(owner)
    assert not state.owner_alive(directory)


@pytest.mark.parametrize("id", ["a", "A_b+c-d.e", "..a", "0" * 255, "-x"])
def test_ids_that_runc_accepts_are_accepted(id):
    assert state.check_id(id) == id


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "/", "a b", "é", "a\n", "a\0", "x" * 256, "x" * 2000])
def test_other_ids_are_refused_in_one_short_line(id):
    with pytest.raises(UsageError) as caught:
        state.check_id(id)
    assert caught.value.line().isprintable()
    assert len(caught.value.line()) < 200


def test_an_id_can_be_taken_once(tmp_path):
    state.create(str(tmp_path), "one")
    with pytest.raises(ExistsError, match=r"container with id exists: one"):
        state.create(str(tmp_path), "one")


def test_a_container_directory_is_private(tmp_path):
    assert os.stat(state.create(str(tmp_path / "new"), "one")).st_mode & 0o777 == 0o700


def test_an_unknown_container_does_not_exist(tmp_path):
    with pytest.raises(NotFoundError, match='container "one" does not exist'):
        state.directory(str(tmp_path), "one")


def test_a_half_made_directory_does_not_exist_as_a_container(tmp_path):
    directory = state.create(str(tmp_path), "one")
    with pytest.raises(NotFoundError, match="does not exist"):
        state.state_text(directory)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(HostError, match=r"cannot write .*file: File too large"):
            state.replace_file(str(path), b"longer than four")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_removal_takes_links_away_but_not_what_they_point_to(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    directory = state.create(str(tmp_path / "root"), "one")
    os.symlink(outside, f"{directory}/link")
    os.mkdir(f"{directory}/sub")
    os.symlink(outside / "precious", f"{directory}/sub/file")
    state.remove(directory)
    assert not os.path.exists(directory)
    assert (outside / "precious").read_text() == "x"


def test_removal_of_nothing_is_fine(tmp_path):
    state.remove(str(tmp_path / "gone"))
    assert list(tmp_path.iterdir()) == []


def test_mounts_below_a_directory_are_found_and_those_beside_it_are_not():
    assert "/proc" in state.mounts_below("/proc")
    assert state.mounts_below("/pro") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_directory_with_a_mount_in_it_is_not_removed(tmp_path):
    code = (
        "import sys; from bufferzone import state; from bufferzone.linux import mount, process;"
        "process.unshare(process.CLONE_NEWNS); mount.mount('', '/', flags=mount.MS_REC | mount.MS_PRIVATE);"
        "mount.mount(sys.argv[1], sys.argv[2], flags=mount.MS_BIND); state.remove(sys.argv[3])"
    )
    directory = state.create(str(tmp_path / "root"), "one")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    os.mkdir(f"{directory}/a b")
    words = [sys.executable, "-c", code, str(precious), f"{directory}/a b", directory]
    source = os.path.dirname(os.path.dirname(state.__file__))
    done = subprocess.run(words, env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert "still mounted" in done.stderr
    assert (precious / "file").exists()


def test_what_leads_to_a_network_namespace_is_no_container(tmp_path):
    directory = state.create(str(tmp_path), "one")
    assert state.socket_path(directory) == f"{directory}/shim.sock"
    entry = state.netns_entry(str(tmp_path), 4, 4026531840)
    assert entry == f"{tmp_path}/@net-4-4026531840"
    os.mkdir(entry)
    assert state.list_ids(str(tmp_path)) == ["one"]


def test_leftovers_come_back_as_they_were_written(tmp_path):
    directory = state.create(str(tmp_path), "one")
    assert state.read_leftovers(directory) == {}
    state.write_leftovers(directory, {"processes": [[1, 2]], "cgroups": ["/a"]})
    assert state.read_leftovers(directory) == {"processes": [[1, 2]], "cgroups": ["/a"]}


def test_only_containers_are_listed(tmp_path):
    for id in ("b", "a"):
        state.create(str(tmp_path), id)
    (tmp_path / "file").write_text("")
    (tmp_path / "white space").mkdir()
    assert state.list_ids(str(tmp_path)) == ["a", "b"]
    assert state.list_ids(str(tmp_path / "none")) == []
    with pytest.raises(HostError, match=r"cannot list .*/file: Not a directory"):
        state.list_ids(str(tmp_path / "file"))


def test_the_root_follows_flag_and_user(monkeypatch, tmp_path):
    assert state.runtime_root("relative") == os.path.abspath("relative")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state.runtime_root() == "/run/bufferzone"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert state.runtime_root() == "/tmp/bufferzone-12345"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert state.runtime_root() == f"{tmp_path}/bufferzone"


def test_a_root_of_somebody_else_is_refused(monkeypatch, tmp_path):
    (tmp_path / "bufferzone").mkdir(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(HostError, match="not a private directory of uid 12345"):
        state.runtime_root()
