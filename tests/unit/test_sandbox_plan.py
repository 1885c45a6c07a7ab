"""The plan is pure: what of a spec becomes a bind, what stays the guest's, what a VM refuses."""

import json
from typing import Any

import pytest

from bufferzone.config import Settings
from bufferzone.errors import HostError, SpecError
from bufferzone.model import Rates
from bufferzone.record import replace
from bufferzone.sandbox import mounts, plan
from bufferzone.vm.size import size_for
from bufferzone.vmm import drivers


def spec(**changes):
    base = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["/bin/true"], "cwd": "/"},
        "mounts": [],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}]},
    }
    base.update(changes)
    return base


class OneTmpfs(mounts.Host):
    """A host of which nothing is known but tmpfs."""

    def __init__(self, tmpfs_size):
        self.tmpfs_size = tmpfs_size


def decide(value, tmpfs_size=lambda path: 0, is_small=None, other_container=lambda pid: "", ipc_of=""):
    return plan.plan_container(
        value,
        container_id="c1",
        bundle="/b",
        host=OneTmpfs(tmpfs_size),
        is_small=is_small,
        other_container=other_container,
        ipc_of=ipc_of,
    )


def test_the_root_is_bound_first_and_the_guest_sees_it_below_the_share():
    decided = decide(spec())
    assert decided.binds[0].source == "/b/rootfs"
    assert decided.binds[0].name == "c1.rootfs"
    assert json.loads(decided.guest_spec)["root"]["path"] == "/run/bufferzone/shared/c1.rootfs"


def test_a_read_only_volume_is_read_only_on_the_host_side_too():
    mounts = [{"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]}]
    decided = decide(spec(mounts=mounts))
    assert (decided.binds[1].source, decided.binds[1].read_only) == ("/srv/data", True)
    assert json.loads(decided.guest_spec)["mounts"][0]["source"] == "/run/bufferzone/shared/c1.0"


def test_a_later_rw_option_wins_over_ro():
    mounts = [{"destination": "/data", "type": "bind", "source": "/d", "options": ["ro", "rw"]}]
    assert not decide(spec(mounts=mounts)).binds[1].read_only


def test_a_plain_bind_is_not_recursive_and_an_rbind_is():
    mounts = [
        {"destination": "/a", "type": "bind", "source": "/a", "options": ["bind"]},
        {"destination": "/b", "type": "bind", "source": "/b", "options": ["rbind"]},
    ]
    assert [b.recursive for b in decide(spec(mounts=mounts)).binds[1:]] == [False, True]


def test_mounts_that_are_no_binds_go_to_the_guest_unchanged():
    mounts = [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}]
    decided = decide(spec(mounts=mounts))
    assert json.loads(decided.guest_spec)["mounts"] == mounts
    assert len(decided.binds) == 1


@pytest.mark.parametrize(
    ("source", "kind"), [("/proc", "proc"), ("/sys", "sysfs"), ("/sys/fs/cgroup", "cgroup")]
)
def test_a_bind_of_a_kernel_file_system_becomes_the_guests_own(source, kind):
    mounts = [{"destination": source, "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid"]}]
    decided = decide(spec(mounts=mounts))
    made = json.loads(decided.guest_spec)["mounts"][0]
    assert (made["type"], made["options"]) == (kind, ["ro", "nosuid"])
    assert len(decided.binds) == 1


def test_shared_memory_becomes_a_tmpfs_of_the_same_size():
    mounts = [{"destination": "/dev/shm", "type": "bind", "source": "/x/shm", "options": ["rbind", "rw"]}]
    decided = decide(spec(mounts=mounts), tmpfs_size=lambda path: 65536 if path == "/x/shm" else 0)
    made = json.loads(decided.guest_spec)["mounts"][0]
    assert made["type"] == "tmpfs"
    assert "size=65536" in made["options"]


def test_a_bind_without_a_source_is_refused_with_its_json_path():
    with pytest.raises(SpecError, match=r"mounts\[0\]\.source"):
        decide(spec(mounts=[{"destination": "/a", "type": "bind", "options": []}]))


def test_network_namespaces_stay_on_the_host_and_others_lose_nothing():
    made = json.loads(decide(spec()).guest_spec)["linux"]["namespaces"]
    assert made == [{"type": "pid"}, {"type": "mount"}]


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts", "mount", "user", "cgroup"])
def test_joining_a_namespace_of_the_host_is_refused(kind):
    linux = {"namespaces": [{"type": kind, "path": "/proc/1/ns/x"}]}
    with pytest.raises(SpecError, match=rf"namespaces\[0\]\.path: a VM cannot join the {kind} namespace"):
        decide(spec(linux=linux))


def a_tmpfs(path):
    return 64 << 20


def other_container(pid):
    return {4711: "other"}.get(pid, "")


def test_the_namespaces_of_a_container_of_the_same_vm_are_named_after_it():
    kinds = ("ipc", "uts", "pid", "user", "cgroup")
    linux = {"namespaces": [{"type": kind, "path": f"/proc/4711/ns/{kind}"} for kind in kinds]}
    shm = {"destination": "/dev/shm", "type": "bind", "source": "/host/shm", "options": ["bind", "nosuid"]}
    made = json.loads(
        decide(spec(linux=linux, mounts=[shm]), a_tmpfs, other_container=other_container).guest_spec
    )
    assert made["linux"]["namespaces"] == [{"type": kind, "path": "container:other"} for kind in kinds]
    (mount,) = made["mounts"]
    assert (mount["type"], mount["source"], mount["options"]) == (
        "shared-mount",
        "container:other",
        ["nosuid"],
    )


def test_the_pid_namespace_of_its_children_is_that_of_a_container():
    linux = {"namespaces": [{"type": "pid", "path": "/proc/4711/ns/pid_for_children"}]}
    made = json.loads(decide(spec(linux=linux), other_container=other_container).guest_spec)
    assert made["linux"]["namespaces"] == [{"type": "pid", "path": "container:other"}]


def test_what_is_added_to_a_sandbox_has_its_ipc_namespace_and_shared_memory_whatever_it_asks_for():
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "size=64m"]}
    tmp = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []}
    for spaces in ([{"type": "mount"}, {"type": "ipc"}], [{"type": "mount"}]):
        changed = spec(linux={"namespaces": spaces}, mounts=[shm, tmp])
        made = json.loads(decide(changed, ipc_of="first").guest_spec)
        shared = {"type": "ipc", "path": "container:first"}
        assert made["linux"]["namespaces"] == [{"type": "mount"}, shared]
        one, other = made["mounts"]
        assert (one["type"], one["source"], one["options"]) == (
            "shared-mount",
            "container:first",
            ["nosuid"],
        )
        assert other == tmp


def test_a_volume_at_dev_shm_stays_one_in_a_container_of_a_sandbox():
    volume = {"destination": "/dev/shm", "type": "bind", "source": "/data", "options": ["rbind"]}
    made = json.loads(decide(spec(mounts=[volume]), ipc_of="first").guest_spec)
    assert made["mounts"][0]["type"] == "bind"


def test_without_its_ipc_namespace_another_containers_memory_is_not_shared():
    linux = {"namespaces": [{"type": "ipc"}, {"type": "uts", "path": "/proc/4711/ns/uts"}]}
    shm = {"destination": "/dev/shm", "type": "bind", "source": "/host/shm", "options": ["bind", "nosuid"]}
    made = json.loads(
        decide(spec(linux=linux, mounts=[shm]), a_tmpfs, other_container=other_container).guest_spec
    )
    assert [mount["type"] for mount in made["mounts"]] == ["tmpfs"]
    linux = {"namespaces": [{"type": "ipc", "path": "/proc/4711/ns/ipc"}]}
    shm = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]}
    made = json.loads(
        decide(spec(linux=linux, mounts=[shm]), a_tmpfs, other_container=other_container).guest_spec
    )
    assert made["mounts"] == [shm], "it asked for its own"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("ipc", "/proc/4712/ns/ipc"),
        ("ipc", "/proc/4711/ns/uts"),
        ("ipc", "/proc/self/ns/ipc"),
        ("ipc", "/proc/4711/ns/../ns/ipc"),
        ("ipc", "/run/ipc"),
        ("mount", "/proc/4711/ns/mount"),
        ("mount", "/proc/4711/ns/mnt"),
        ("time", "/proc/4711/ns/time"),
        ("user", "/proc/4712/ns/user"),
        ("cgroup", "/proc/4711/ns/pid_for_children"),
    ],
)
def test_no_other_namespace_of_the_host_is_another_containers(kind, path):
    linux = {"namespaces": [{"type": kind, "path": path}]}
    with pytest.raises(SpecError, match=rf"a VM cannot join the {kind} namespace"):
        decide(spec(linux=linux), other_container=other_container)


def test_hooks_are_split_between_host_and_guest():
    hooks = {
        name: [{"path": f"/h/{name}"}]
        for name in (
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        )
    }
    decided = decide(spec(hooks=hooks))
    assert sorted(json.loads(decided.guest_spec)["hooks"]) == ["startContainer"]
    assert [h.path for h in decided.hooks["poststop"]] == ["/h/poststop"]
    assert [h.path for h in decided.hooks["createContainer"]] == ["/h/createContainer"]


def test_a_hook_without_an_environment_has_the_runtimes_and_an_empty_one_is_empty():
    hooks = {"poststop": [{"path": "/h"}, {"path": "/h", "env": []}, {"path": "/h", "env": ["A=1"]}]}
    assert [h.env for h in decide(spec(hooks=hooks)).hooks["poststop"]] == [None, (), ("A=1",)]


def test_a_create_hook_for_a_root_on_a_disk_is_refused_by_name():
    with pytest.raises(SpecError, match=r"hooks\.createContainer: the root file system is on a disk"):
        decide(spec(hooks={"createContainer": [{"path": "/h"}]}), is_small=lambda path: False)


def test_seccomp_leaves_the_spec_to_be_compiled_on_the_host():
    linux = {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "cgroupsPath": "/x"}
    decided = decide(spec(linux=linux))
    assert decided.seccomp == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert not {"seccomp", "cgroupsPath"} & json.loads(decided.guest_spec)["linux"].keys()


def test_the_spec_given_is_not_changed():
    value = spec()
    before = json.dumps(value)
    decide(value)
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    ("limit", "memory"),
    [
        (0, 512),
        (-1, 512),
        (64 << 20, 512),
        (320 << 20, 512),
        (321 << 20, 768),
        (1 << 30, 1536),
        (2 << 30, 3072),
        (4 << 30, 6144),
        (1 << 40, 8192),  # all that this machine has
    ],
)
def test_a_memory_limit_fits_into_the_vm_beside_the_guest_in_few_sizes(limit, memory):
    value = spec(linux={"resources": {"memory": {"limit": limit}}})
    assert size_for(value, {}, vcpus=1, memory_mib=512, host_mib=8192).memory_mib == memory


def test_a_size_that_somebody_set_is_taken_as_it_is_as_long_as_the_limit_fits():
    value = spec(linux={"resources": {"memory": {"limit": 1 << 29}}})
    assert size_for(value, {}, vcpus=1, memory_mib=1000).memory_mib == 1000
    assert size_for(spec(), {}, vcpus=1, memory_mib=150).memory_mib == 150


@pytest.mark.parametrize(
    ("cpu", "vcpus"),
    [
        ({}, 1),
        ({"quota": 50000, "period": 100000}, 1),
        ({"quota": 150000, "period": 100000}, 2),
        ({"quota": 150000}, 2),
        ({"quota": 10000000, "period": 100000}, 4),  # all that this machine has
        ({"quota": -1, "period": 100000}, 1),
        ({"cpus": "0-1,3"}, 3),
        ({"cpus": "0-1,3", "quota": 200000}, 2),
        ({"cpus": "0-63"}, 4),
        ({"cpus": "nonsense"}, 1),
        ({"shares": 4096}, 1),
    ],
)
def test_the_vm_has_as_many_cpus_as_the_limits_allow(cpu, vcpus):
    value = spec(linux={"resources": {"cpu": cpu}})
    assert size_for(value, {}, vcpus=0, memory_mib=512, host_cpus=4).vcpus == vcpus
    assert size_for(value, {}, vcpus=3, memory_mib=512, host_cpus=4).vcpus == 3


def test_a_pods_first_container_gets_a_vm_for_the_pod():
    notes = {"cpu-quota": "150000", "cpu-period": "100000", "memory": str(1 << 30), "cpu-shares": "2"}
    notes = {f"io.kubernetes.cri.sandbox-{key}": text for key, text in notes.items()}
    size = size_for(spec(annotations=notes), notes, vcpus=0, memory_mib=512, host_cpus=4, host_mib=8192)
    assert (size.vcpus, size.memory_mib) == (2, 1536)
    size = size_for(spec(annotations=notes), {}, vcpus=0, memory_mib=512, host_cpus=4, host_mib=8192)
    assert (size.vcpus, size.memory_mib) == (1, 512)  # an image says so


def test_names_of_the_hosts_cpus_and_disks_stay_on_the_host():
    given = {"cpu": {"cpus": "0", "mems": "0", "shares": 5}, "blockIO": {"weight": 10}, "pids": {"limit": 1}}
    made = json.loads(decide(spec(linux={"resources": given})).guest_spec)["linux"]["resources"]
    assert made == {"cpu": {"shares": 5}, "pids": {"limit": 1}}


HOSTS = {"destination": "/etc/hosts", "type": "bind", "source": "/run/hosts", "options": ["bind"]}
DATA = {"destination": "/data", "type": "bind", "source": "/srv/small", "options": ["bind"]}


def test_a_root_on_a_disk_binds_nothing_and_copies_what_engines_bind():
    decided = decide(spec(mounts=[HOSTS]), is_small=lambda path: True)
    guest = json.loads(decided.guest_spec)
    assert (decided.binds, guest["root"]["path"]) == ((), "/run/bufferzone/root/rootfs")
    assert [(file.source, file.name) for file in decided.files] == [("/run/hosts", "c1.0")]
    assert guest["mounts"] == [{**HOSTS, "source": "/run/bufferzone/files/c1.0"}]


def test_a_volume_is_shared_however_small_it_is():
    decided = decide(spec(mounts=[HOSTS, DATA]), is_small=lambda path: True)
    assert [bind.source for bind in decided.binds] == ["/srv/small"]
    assert json.loads(decided.guest_spec)["mounts"][1]["source"] == "/run/bufferzone/shared/c1.1"


def test_an_engines_file_that_is_too_large_is_shared():
    decided = decide(spec(mounts=[HOSTS]), is_small=lambda path: False)
    assert ([bind.source for bind in decided.binds], decided.files) == (["/run/hosts"], ())


def test_with_a_shared_root_nothing_is_copied():
    decided = decide(spec(mounts=[HOSTS]))
    assert ([bind.source for bind in decided.binds], decided.files) == (["/b/rootfs", "/run/hosts"], ())


QEMU = drivers.find("qemu").FEATURES


@pytest.mark.parametrize(
    ("lacking", "settings", "asked", "problem"),
    [
        (
            {"virtiofs": False},
            {},
            {"shared": ("/srv/data",)},
            "cannot share files of the host with a VM: /srv/data",
        ),
        ({"slot_bytes": 0}, {"rootfs": "block"}, {}, "QEMU has no slot for the image"),
        ({"snapshot": False}, {}, {"restored": True}, "QEMU cannot restore a VM"),
        ({"disk_rate": False}, {"disk_kib_per_s": 9}, {}, "QEMU cannot limit what is read from a disk"),
        ({"disk_rate": False}, {"disk_ops_per_s": 9}, {}, "QEMU cannot limit what is read from a disk"),
    ],
)
def test_a_wish_that_the_vmm_cannot_follow_is_refused_and_one_that_nobody_has_is_not(
    lacking: dict[str, Any], settings: dict[str, Any], asked: dict[str, Any], problem: str
) -> None:
    wishes = {"shared": (), "restored": False, **asked}
    with pytest.raises(HostError, match=problem) as caught:
        plan.within_features(Settings(**settings), replace(QEMU, **lacking), **wishes)
    assert caught.value.code == "vmm-feature"
    plan.within_features(Settings(**settings), QEMU, **wishes)
    plan.within_features(Settings(), replace(QEMU, **lacking), shared=(), restored=False)


def test_a_vmm_that_gains_nothing_by_templates_starts_without_them() -> None:
    settings = Settings()
    kept = plan.within_features(settings, QEMU, shared=("/b",), restored=False)
    cold = plan.within_features(settings, replace(QEMU, templates=False), shared=("/b",), restored=False)
    assert (kept.templates, cold.templates) == (True, False)


def test_a_limit_that_cannot_be_kept_is_refused_and_never_forgotten() -> None:
    fire = drivers.find("firecracker").FEATURES
    network = Settings(network_kib_per_s=9)
    with pytest.raises(HostError, match=r"^QEMU cannot limit a network") as caught:
        plan.within_features(network, QEMU, shared=(), restored=False)
    assert caught.value.hint.startswith("vmm = firecracker, or")
    plan.within_features(network, fire, shared=(), restored=False)
    for name in ("disk_kib_per_s", "disk_ops_per_s"):
        # what is shared is not read from the disk
        with pytest.raises(HostError, match="shared files: /srv/data") as caught:
            plan.within_features(Settings(**{name: 9}), QEMU, shared=("/srv/data",), restored=False)
        assert caught.value.code == "vmm-feature"
        plan.within_features(Settings(**{name: 9}), fire, shared=(), restored=True)


def test_limits_in_kib_become_bytes() -> None:
    settings = Settings(disk_kib_per_s=2, disk_ops_per_s=3, network_kib_per_s=1 << 30)
    assert plan.rates_of(settings) == Rates(disk_bytes=2048, disk_ops=3, network_bytes=1 << 40)
    assert plan.rates_of(Settings()) == Rates()
