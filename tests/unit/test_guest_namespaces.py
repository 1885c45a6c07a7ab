"""Names, sysctls and namespaces beyond the usual set: user, time, shared and joined ones."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.container import sysctls
from bufferzone.errors import GuestError, NotFoundError, SpecError, StateError
from unit.guest_harness import Guest, make_rootfs, make_spec, needs_root, running_guest

pytestmark = needs_root


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest() as guest:
        yield guest


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)  # a user namespace has to walk there
    return make_rootfs(tmp_path / "rootfs")


def user_spec(rootfs: Path, *args: str) -> dict[str, Any]:
    spec = make_spec(rootfs, *args)
    spec["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        spec["linux"][key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    for path in (rootfs, *rootfs.rglob("*")):
        os.chown(path, 100000, 100000, follow_symlinks=False)
    return spec


def test_hostname_and_domainname_are_the_containers_alone(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "sh", "-c", "hostname; cat /proc/sys/kernel/domainname")
    spec["domainname"] = "example.test"
    before = os.uname()
    assert guest.run(spec)[1] == "inside\nexample.test\n"
    assert os.uname() == before


def test_a_hostname_without_a_uts_namespace_is_refused(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["linux"]["namespaces"] = [{"type": "mount"}, {"type": "pid"}]
    with pytest.raises(SpecError, match="private UTS namespace"):
        guest.create("c", spec)


def test_namespaced_sysctls_are_set_for_the_container_alone(guest: Guest, rootfs: Path) -> None:
    before = Path("/proc/sys/kernel/shmmni").read_text()
    spec = make_spec(
        rootfs, "cat", "/proc/sys/kernel/shmmni", "/proc/sys/fs/mqueue/msg_max", "/proc/sys/kernel/domainname"
    )
    spec["linux"]["sysctl"] = {
        "kernel.shmmni": "77",
        "fs.mqueue.msg_max": "22",
        "kernel.domainname": "by.sysctl",
    }
    assert guest.run(spec)[1] == "77\n22\nby.sysctl\n"
    assert Path("/proc/sys/kernel/shmmni").read_text() == before


def test_a_range_of_groups_is_written_as_the_guest_counts_them() -> None:
    rows = {"gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}]}
    assert sysctls._of_guest("0 0", rows) == "100000 100000"
    assert sysctls._of_guest("5 2147483647", rows) == "100005 165535"
    assert sysctls._of_guest("0\t0", {}) == "0\t0"
    assert sysctls._of_guest("70000 70001", rows) == "70000 70001"
    assert sysctls._of_guest("nonsense", rows) == "nonsense"


def test_an_unknown_sysctl_names_itself(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["linux"]["sysctl"] = {"kernel.no_such_thing": "1"}
    with pytest.raises(GuestError, match=r"kernel\.no_such_thing"):
        guest.create("c", spec)


def test_a_user_namespace_maps_root_to_nobody_special(guest: Guest, rootfs: Path) -> None:
    guest.create(
        "c", user_spec(rootfs, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /made; echo $$; cat")
    )
    guest.start("c")
    out = guest.read_until(b"\n1\n", "c").decode().split()
    assert out == ["0", "0", "100000", "65536", "1"]
    assert (rootfs / "made").stat().st_uid == 100000
    guest.exec(
        "c",
        "e",
        "sh",
        "-c",
        "id -u; echo $PPID; echo x >/proc/self/oom_score_adj; ls -ld /proc/1/root | wc -l",
    )
    assert guest.read_all("c", "e").split()[:2] == [b"0", b"0"]
    assert guest.wait("c", "e").exit_status == 0
    guest.close_stdin("c")
    assert guest.wait("c").exit_status == 0


def test_a_user_namespace_has_its_own_pid_1_that_belongs_to_the_agent(guest: Guest, rootfs: Path) -> None:
    pid = guest.create("c", user_spec(rootfs, "cat"))
    assert f"PPid:\t{guest.process.pid}\n" in Path(f"/proc/{pid}/status").read_text()
    assert f"NSpid:\t{pid}\t1\n" in Path(f"/proc/{pid}/status").read_text()
    guest.signal("c", 9)
    assert guest.wait("c").exit_status == 137


def test_a_user_of_a_user_namespace_has_terminal_devices_and_limits(guest: Guest, rootfs: Path) -> None:
    spec = user_spec(
        rootfs, "sh", "-c", "id -u; tty; echo x >/dev/null && ulimit -n && cat /proc/self/oom_score_adj"
    )
    spec["process"].update(terminal=True, user={"uid": 1000, "gid": 1000}, oomScoreAdj=17)
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]
    guest.create("c", spec)
    guest.start("c")
    assert guest.read_all("c").decode().split() == ["1000", "/dev/pts/0", "99", "17"]


@pytest.mark.parametrize("place", ["/dev/own", "/node"])
def test_a_user_namespace_has_the_devices_of_its_spec_with_their_owners(
    guest: Guest, rootfs: Path, place: str
) -> None:
    """crun's test "owner-device": the guest has no node of that name, and the namespace can make none."""
    spec = user_spec(rootfs, "sh", "-c", f"stat -c '%F %t:%T %u:%g %a' {place}; head -c 3 {place} | wc -c")
    node = {"type": "c", "major": 1, "minor": 5, "uid": 10, "gid": 11, "fileMode": 0o604}
    other = {"path": "/dev/other", "type": "b", "major": 7, "minor": 0, "uid": 70000}
    spec["linux"]["devices"] = [other, {"path": place, **node}]
    guest.create("c", spec)
    guest.start("c")
    assert guest.read_all("c").decode() == "character special file 1:5 10:11 604\n3\n"
    assert guest.wait("c").exit_status == 0


def test_a_user_namespace_without_a_mapping_is_refused(guest: Guest, rootfs: Path) -> None:
    spec = user_spec(rootfs, "true")
    del spec["linux"]["uidMappings"]
    with pytest.raises(SpecError, match=r"linux\.uidMappings"):
        guest.create("c", spec)
    spec = user_spec(rootfs, "true")
    assert guest.run(spec)[0] == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/time"), reason="needs time namespaces in the kernel")
@pytest.mark.parametrize("in_user", [False, True])
def test_a_time_namespace_shifts_the_clocks_of_the_container_alone(
    guest: Guest, rootfs: Path, in_user: bool
) -> None:
    spec = (user_spec if in_user else make_spec)(rootfs, "sh", "-c", "cut -d. -f1 /proc/uptime; cat")
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1000000, "nanosecs": 0}}
    guest.create("c", spec)
    guest.start("c")
    assert 0 <= int(guest.read("c")) - 1000000 - time.clock_gettime(time.CLOCK_BOOTTIME) + 60 < 120
    guest.exec("c", "e", "cut", "-d.", "-f1", "/proc/uptime")
    assert int(guest.read("c", "e")) > 1000000
    assert os.readlink(f"/proc/{guest.process.pid}/ns/time") == os.readlink("/proc/self/ns/time")


def test_a_container_may_share_the_namespaces_of_another_by_path(guest: Guest, rootfs: Path) -> None:
    pid = guest.create("a", make_spec(rootfs, "sh", "-c", "echo up; cat; true"))
    guest.start("a")
    guest.read_until(b"up", "a")
    spec = make_spec(rootfs, "sh", "-c", "hostname; ps | grep -c 'echo u[p]'")
    del spec["hostname"]
    shared = [{"type": name, "path": f"/proc/{pid}/ns/{name}"} for name in ("pid", "uts", "ipc")]
    spec["linux"]["namespaces"] = [{"type": "mount"}, *shared]
    assert guest.run(spec, id="b")[1].split() == ["inside", "1"]


def test_a_network_namespace_of_the_spec_is_that_of_the_machine(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "readlink", "/proc/self/ns/net")
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "network"]
    spec["linux"]["namespaces"].append({"type": "network", "path": "/no/such/path/of/the/host"})
    assert guest.run(spec)[1].strip() == os.readlink("/proc/self/ns/net")


def test_a_container_that_asks_for_no_cgroup_namespace_still_sees_its_own_cgroup(
    guest: Guest, rootfs: Path
) -> None:
    spec = make_spec(rootfs, "sh", "-c", "grep ^0 /proc/self/cgroup; cat")
    spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "cgroup"]
    guest.create("c", spec)
    guest.start("c")
    assert guest.read("c") == b"0::/\n"
    guest.exec("c", "e", "grep", "^0", "/proc/self/cgroup")
    assert guest.read_all("c", "e") == b"0::/\n"


def test_a_container_needs_a_mount_namespace(guest: Guest, rootfs: Path) -> None:
    spec = make_spec(rootfs, "true")
    spec["linux"]["namespaces"] = [{"type": "pid"}]
    with pytest.raises(SpecError, match="mount namespace"):
        guest.create("c", spec)


def share_with(spec: dict[str, Any], id: str, *kinds: str) -> dict[str, Any]:
    """`spec` with these namespaces, and the /dev/shm, of another container."""
    del spec["hostname"]
    for entry in spec["linux"]["namespaces"]:
        if entry["type"] in kinds:
            entry["path"] = f"container:{id}"
    options = ["nosuid", "nodev", "noexec"]
    mount = {
        "destination": "/dev/shm",
        "type": "shared-mount",
        "source": f"container:{id}",
        "options": options,
    }
    spec["mounts"] = [mount if m["destination"] == "/dev/shm" else m for m in spec["mounts"]]
    assert mount in spec["mounts"]
    return spec


def test_a_user_namespace_is_shared_with_its_mappings_and_a_cgroup_namespace_too(
    guest: Guest, rootfs: Path
) -> None:
    look = "cd /proc/self/ns; for kind in user cgroup uts; do readlink $kind; done"
    guest.create("a", user_spec(rootfs, "sh", "-c", f"{look}; echo end; exec sleep 1000"))
    guest.start("a")
    theirs = guest.read_until(b"end\n", "a").decode().splitlines()[:3]
    spec = make_spec(rootfs, "sh", "-c", f"{look}; id -u; cat /proc/self/uid_map >&2; echo out >/dev/stdout")
    spec["linux"]["namespaces"].append({"type": "user"})
    status, ours, maps = guest.run(share_with(spec, "a", "user", "cgroup", "uts"))
    assert status == 0, maps
    *kinds, uid, out = ours.splitlines()
    assert (kinds, uid, out) == (theirs, "0", "out")
    assert maps.split() == _map_of(guest)
    spec = make_spec(rootfs, "sleep", "1000")
    spec["linux"]["namespaces"].append({"type": "user"})
    guest.create("b", share_with(spec, "a", "user", "pid"))
    guest.start("b")
    guest.exec("b", "e", "cat", "/proc/self/uid_map")
    assert guest.read_all("b", "e").decode().split() == maps.split()
    for id in ("b", "a"):
        guest.signal(id, 9)
        guest.wait(id)
        guest.delete(id)


def _map_of(guest: Guest) -> list[str]:
    guest.exec("a", "map", "cat", "/proc/self/uid_map")
    return guest.read_all("a", "map").decode().split()


def test_a_name_given_to_a_shared_uts_namespace_is_its_name(guest: Guest, rootfs: Path) -> None:
    guest.create("a", make_spec(rootfs, "sleep", "1000"))
    guest.start("a")
    spec = share_with(make_spec(rootfs, "hostname"), "a", "uts")
    assert guest.run({**spec, "hostname": "other"})[:2] == (0, "other\n")
    guest.exec("a", "e", "hostname")
    assert guest.read_all("a", "e") == b"other\n"
    guest.signal("a", 9)
    guest.wait("a")
    guest.delete("a")


def test_a_container_shares_what_it_names_of_another_and_no_more(guest: Guest, rootfs: Path) -> None:
    look = "cd /proc/self/ns; for kind in ipc uts pid mnt cgroup; do readlink $kind; done; cat /dev/shm/file"
    first = make_spec(rootfs, "sh", "-c", f"echo there > /dev/shm/file; {look}; exec sleep 1000")
    guest.create("a", first)
    guest.start("a")
    theirs = guest.read_until(b"there\n", "a").decode().splitlines()
    try:
        status, ours, errors = guest.run(share_with(make_spec(rootfs, "sh", "-c", look), "a", "ipc", "uts"))
        assert (status, errors) == (0, "")
        same = [kind == other for kind, other in zip(ours.splitlines(), theirs, strict=True)]
        assert same == [True, True, False, False, False, True]
        show = "hostname; ps; mount | grep /dev/shm"
        spec = share_with(make_spec(rootfs, "sh", "-c", show), "a", "ipc", "uts", "pid")
        _, text, errors = guest.run(spec)
        assert errors == ""
        assert text.startswith("inside\n")
        assert "sleep 1000" in text
        assert "noexec" in text.splitlines()[-1]
        guest.create("b", share_with(make_spec(rootfs, "sleep", "1000"), "a", "pid"))
        guest.start("b")
        guest.exec("b", "e", "ps")
        assert guest.read_all("b", "e").count(b"sleep 1000") == 2
    finally:
        guest.signal("a", 9)
    assert guest.wait("b").exit_status == 137, "pid 1 of its namespace has ended"
    guest.wait("a")
    with pytest.raises(StateError, match="cannot share the namespaces of container a: it is not running"):
        guest.create("c", share_with(make_spec(rootfs, "true"), "a", "ipc"))
    with pytest.raises(NotFoundError, match="container does not exist: nobody"):
        guest.create("c", share_with(make_spec(rootfs, "true"), "nobody", "ipc"))
    guest.delete("a")
    guest.delete("b")
