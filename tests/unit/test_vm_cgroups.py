"""Host cgroup paths: pure functions over the kernel's text."""

import errno

import pytest

from bufferzone.errors import HostError, SpecError
from bufferzone.vm import cgroups

HYBRID = """\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_every_hierarchy_of_a_hybrid_machine_is_found():
    assert cgroups.hierarchies(HYBRID) == [
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/pids",
        "/sys/fs/cgroup/unified",
    ]


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("", ""),
        ("/libpod_parent/libpod-1", "libpod_parent/libpod-1"),
        ("relative/x", "relative/x"),
        ("/a/../../etc", "etc"),
        ("machine.slice:libpod:1", "machine.slice/libpod-1.scope"),
        ("user-1000.slice:x:1", "user.slice/user-1000.slice/x-1.scope"),
        (":libpod:1", "system.slice/libpod-1.scope"),
    ],
)
def test_the_path_below_a_hierarchy(asked, path):
    assert cgroups.relative_path(asked, "c") == path


def test_the_root_cgroup_is_refused():
    with pytest.raises(SpecError, match="cgroupsPath"):
        cgroups.relative_path("/", "c")


def test_directories_that_others_use_are_waited_for_once(tmp_path, monkeypatch):
    now = [1000.0]
    busy = [str(tmp_path / name) for name in ("cpu", "memory", "pids")]
    free = str(tmp_path / "freezer")

    def remove(directory):
        if directory in busy:
            raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(cgroups.os, "rmdir", remove)
    monkeypatch.setattr(cgroups.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cgroups.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    assert cgroups.leave_and_remove([*busy, free], 1) == busy
    assert 1.9 < now[0] - 1000.0 < 2.1


def test_who_is_where_the_leader_is_is_not_moved(monkeypatch):
    where = {1: "1:memory:/a\n0::/a\n", 2: "1:memory:/a\n0::/a\n", 3: "1:memory:/\n0::/\n"}
    moved = []
    monkeypatch.setattr(cgroups, "of_process", where.__getitem__)
    monkeypatch.setattr(cgroups, "_mountinfo", lambda: HYBRID)
    monkeypatch.setattr(cgroups, "write_file", lambda path, text: moved.append((path, text)))
    cgroups.follow(where[1], (2, 3))
    assert moved == [
        ("/sys/fs/cgroup/memory/a/cgroup.procs", "3"),
        ("/sys/fs/cgroup/unified/a/cgroup.procs", "3"),
    ]
    cgroups.follow(where[1], (2,))
    assert len(moved) == 2


def test_a_process_leaves_for_the_nearest_cgroup_that_takes_it(tmp_path, monkeypatch):
    """On cgroup v2 the one above has controllers for its children, and takes no process itself."""
    root = tmp_path / "root"
    cgroup = root / "parent" / "c"
    cgroup.mkdir(parents=True)
    for directory in (root, root / "parent"):
        (directory / "cgroup.procs").write_text("")
    true_write = cgroups.write_file

    def write(path, text):
        if path == str(root / "parent" / "cgroup.procs"):
            raise OSError(errno.EBUSY, "busy")
        true_write(path, text)

    monkeypatch.setattr(cgroups, "write_file", write)
    assert cgroups.leave_and_remove([str(cgroup)], 4711) == []
    assert (root / "cgroup.procs").read_text() == "4711"
    assert not cgroup.exists()


def test_a_cgroup_that_cannot_be_left_is_not_waited_for(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBUSY, "busy")

    cgroup = tmp_path / "c"
    cgroup.mkdir()
    (tmp_path / "cgroup.procs").write_text("")
    monkeypatch.setattr(cgroups, "write_file", refuse)
    monkeypatch.setattr(cgroups.os, "rmdir", refuse)
    monkeypatch.setattr(cgroups.time, "sleep", lambda seconds: pytest.fail("it waited"))
    assert cgroups.leave_and_remove([str(cgroup)], 1) == [str(cgroup)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two hierarchies of v1 and the unified one, as directories; mkdir gives a cgroup its files."""
    rows = []
    for name in ("freezer", "memory", "unified"):
        (tmp_path / name).mkdir()
        kind = "cgroup2" if name == "unified" else "cgroup"
        rows.append(f"31 30 0:27 / {tmp_path / name} rw - {kind} {kind} rw")
    monkeypatch.setattr(cgroups, "_mountinfo", lambda: "\n".join(rows))
    monkeypatch.setattr(cgroups, "_made", set())
    return tmp_path


def group(directory, *pids, **files):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    for name, text in files.items():
        (directory / name.replace("_", ".")).write_text(text)
    return directory


def test_an_empty_cgroup_that_is_there_is_ours_to_limit(machine):
    directory = group(machine / "memory" / "a")
    assert not cgroups.is_ours(str(directory))
    assert cgroups.claim("a") == 0
    assert cgroups.is_ours(str(directory))


def test_one_with_processes_in_it_or_below_stays_its_makers(machine):
    group(machine / "memory" / "a")
    group(machine / "memory" / "a" / "b", 7)
    group(machine / "unified" / "a", 7, 8)
    assert cgroups.claim("a") == 2
    assert not cgroups.is_ours(str(machine / "memory" / "a"))


@pytest.mark.parametrize(
    ("where", "files"),
    [
        ("freezer/a", {"freezer_state": "FROZEN\n"}),
        ("freezer/a", {"freezer_state": "FREEZING\n"}),
        ("freezer/a/b", {"freezer_state": "FROZEN\n"}),
        ("unified/a", {"cgroup_events": "populated 0\nfrozen 1\n"}),
    ],
)
def test_a_frozen_cgroup_is_refused_in_runcs_words(machine, where, files):
    group(machine / where, **files)
    with pytest.raises(HostError, match="container's cgroup unexpectedly frozen") as caught:
        cgroups.claim("a/b")
    assert caught.value.code == "cgroup-frozen"


def test_a_thawed_one_is_not(machine):
    group(machine / "freezer" / "a", freezer_state="THAWED\n")
    group(machine / "unified" / "a", cgroup_events="populated 1\nfrozen 0\n")
    assert cgroups.claim("a/b") == 0
