"""What one entry of `mounts` becomes: the guest's own, a tree of the host, a mount made on the host."""

from __future__ import annotations

import os
from itertools import permutations
from typing import Any

import pytest

from bufferzone.errors import SpecError
from bufferzone.linux import mount as lm
from bufferzone.linux import mountoptions
from bufferzone.model import Bind
from bufferzone.sandbox import mounts, sources

READ_ONLY = ("ro", "rw", "rro", "rrw")
SHARED = "/run/bufferzone/shared/c.0"


class Linked(mounts.Host):
    """A host with links, and mounts below /data."""

    links = {"/var/cgroups": "/sys/fs/cgroup", "/self": "/proc/4711/fd"}

    def real(self, path: str) -> str:
        path = os.path.normpath(path)
        for link, target in self.links.items():
            if f"{path}/".startswith(f"{link}/"):
                return target + path[len(link) :]
        return path

    def mounted_below(self, path: str) -> list[tuple[str, str]]:
        if path == "/data":
            return [("sub", "ext4"), ("sub/deep", "tmpfs")]
        if path == "/":
            return [
                ("dev", "tmpfs"),
                ("dev/pts", "devpts"),
                ("proc", "proc"),
                ("proc/fs/nfsd", "nfsd"),
                ("srv/tree/dev", "devtmpfs"),
                ("srv/tree/proc", "proc"),
                ("sys", "sysfs"),
                ("sys/fs/cgroup", "tmpfs"),
                ("sys/fs/cgroup/memory", "cgroup"),
                ("sys/kernel/debug", "debugfs"),
            ]
        return []


def decide(
    source: str, *options: str, to: str = "/to", kind: str = "bind"
) -> tuple[dict[str, Any], Bind | None]:
    entry = {"destination": to, "type": kind, "source": source, "options": list(options)}
    return mounts.decide(entry, 0, bundle="/b", host=Linked(), name="c.0")


@pytest.mark.parametrize(
    "source", ["/sys/fs/cgroup/systemd", "/sys//fs/cgroup/../cgroup/systemd/", "/var/cgroups/x"]
)
def test_a_hierarchy_of_cgroup_v1_makes_the_containers_own_tree_writable(source: str) -> None:
    made, bind = decide(source, "bind", "nosuid", to="/sys/fs/cgroup/systemd")
    assert (made["destination"], made["type"], bind) == ("/sys/fs/cgroup", "cgroup", None)
    assert made["options"] == ["remount", "rw"]


def test_a_part_of_the_hosts_cgroups_elsewhere_is_the_containers_tree() -> None:
    made, bind = decide("/sys/fs/cgroup/memory", "bind", "ro", to="/host/memory")
    assert (made["destination"], made["type"], made["options"], bind) == (
        "/host/memory",
        "cgroup",
        ["ro"],
        None,
    )


@pytest.mark.parametrize(
    "source",
    ["/proc/sys", "/proc/cpuinfo", "/sys/class/net", "/dev", "/dev/fuse", "/dev/shm", "/dev/../proc/sys/./"],
)
def test_a_part_of_a_kernel_file_system_is_the_guests(source: str) -> None:
    made, bind = decide(source, "rbind", "ro")
    assert (made["source"], made["options"], bind) == (os.path.normpath(source), ["rbind", "ro"], None)


@pytest.mark.parametrize("source", ["/dev/shm/data", "/self/5", "/proc/1/root", "/procedures", "/srv/proc"])
def test_what_only_looks_like_one_is_the_hosts(source: str) -> None:
    made, bind = decide(source, "rbind")
    assert (made["source"], bind) == (SHARED, Bind(source=source, name="c.0"))


def test_read_only_is_for_the_top_and_names_what_is_below() -> None:
    made, bind = decide("/data", "rbind", "ro")
    assert made["below"] == ["sub", "sub/deep"]
    assert bind == Bind(source="/data", name="c.0", read_only=True)


@pytest.mark.parametrize("option", ["shared", "slave", "private", "unbindable", "runbindable"])
def test_propagation_of_the_top_alone_names_what_is_below(option: str) -> None:
    assert decide("/data", "rbind", option)[0]["below"] == ["sub", "sub/deep"]
    assert "below" not in decide("/data", "bind", option)[0]


@pytest.mark.parametrize("option", ["rshared", "rslave", "rprivate"])
def test_propagation_of_the_whole_tree_reaches_what_comes_later(option: str) -> None:
    assert "below" not in decide("/data", "rbind", option)[0]


def test_rro_is_for_all_and_a_plain_bind_has_nothing_below() -> None:
    assert decide("/data", "rbind", "rro")[1] == Bind(
        source="/data", name="c.0", read_only=True, read_only_below=True
    )
    for options in (["rbind", "rro"], ["bind", "ro"], ["rbind"]):
        assert "below" not in decide("/data", *options)[0]


@pytest.mark.parametrize(
    ("options", "kept"), [((), []), (("ro",), ["ro"]), (("rro", "nosuid"), ["nosuid", "ro"])]
)
def test_the_kernels_own_below_a_volume_is_the_guests(options: tuple[str, ...], kept: list[str]) -> None:
    made, bind = decide("/", "rbind", *options, to="/host/")
    assert bind
    assert [tuple(entry.values()) for entry in made["kernels"]] == [
        ("/host/dev", "bind", "/dev", ["rbind", *kept]),
        ("/host/proc", "proc", "proc", kept),
        ("/host/srv/tree/dev", "bind", "/dev", ["rbind", *kept]),
        ("/host/srv/tree/proc", "proc", "proc", kept),
        ("/host/sys", "sysfs", "sysfs", kept),
        ("/host/sys/fs/cgroup", "cgroup", "cgroup", kept),
    ]
    assert "kernels" not in decide("/", "bind", to="/host")[0]
    assert "kernels" not in decide("/data", "rbind")[0]


@pytest.mark.parametrize(
    "options", [row for n in range(4) for row in permutations(READ_ONLY, n)], ids="-".join
)
def test_the_host_holds_what_the_kernel_makes_of_the_options(options: tuple[str, ...]) -> None:
    parsed = mountoptions.parse(list(options))
    top, (tree, cleared) = parsed.set & lm.MS_RDONLY, parsed.tree_attributes()  # the tree's come after
    wanted = bool(tree or (top and not cleared))
    bind = decide("/data", "rbind", *options)[1]
    assert bind
    assert (bind.read_only, bind.read_only_below) == (wanted, bool(tree))


@pytest.mark.parametrize("kind", ["overlay", "ext4", "nfs", "fuse.sshfs", "nosuchfs"])
def test_what_is_made_of_host_paths_is_mounted_on_the_host(kind: str) -> None:
    made, bind = decide("src", "lowerdir=/a", "nodev", "ro", "rslave", kind=kind)
    assert bind == Bind(
        source="src",
        name="c.0",
        read_only=True,
        type=kind,
        options=("lowerdir=/a", "nodev", "ro", "rslave"),
    )
    assert (made["type"], made["source"]) == ("bind", SHARED)
    assert made["options"] == ["rbind", "nodev", "ro", "rslave"]


@pytest.mark.parametrize("kind", ["tmpfs", "proc", "sysfs", "mqueue", "devpts", "cgroup", "cgroup2", "bpf"])
def test_what_the_kernel_makes_out_of_nothing_is_the_guests(kind: str) -> None:
    made, bind = decide("any", "nosuid", kind=kind)
    assert (made["type"], made["source"], bind) == (kind, "any", None)


def test_a_bind_needs_a_source() -> None:
    with pytest.raises(SpecError, match=r"mounts\[0\]\.source"):
        decide("", "bind")


def test_this_host_knows_its_links_and_its_mounts(tmp_path: Any) -> None:
    (tmp_path / "link").symlink_to("/sys/fs")
    host = sources._Host()
    assert host.real(f"{tmp_path}/link/cgroup/x") == "/sys/fs/cgroup/x"
    assert "proc" in host.below("/")
    assert host.below(str(tmp_path)) == []
    assert host.tmpfs_size(str(tmp_path)) == 0
