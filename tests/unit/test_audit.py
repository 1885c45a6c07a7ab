"""The audit's rules: what a helper holds too much of is found, thread by thread."""

from __future__ import annotations

import os
from html.parser import HTMLParser

import pytest

from bufferzone.audit import (
    configuration,
    finding,
    held,
    host,
    hypervisor,
    jailed,
    page,
    report,
    sandboxes,
    walls,
)
from bufferzone.audit.finding import Collector, Finding
from bufferzone.audit.held import Descriptor, Mount, Thread
from bufferzone.audit.sandboxes import Process, Sandbox
from bufferzone.config import Settings
from bufferzone.record import replace

HOST = {"user": 1, "mnt": 2, "pid": 3, "net": 4, "ipc": 5, "uts": 6, "cgroup": 7}
APART = {**HOST, "mnt": 12, "pid": 13, "net": 14, "ipc": 15, "uts": 16}
HOST_ROOT = (1, 2)


def thread(**changes):
    nothing = dict.fromkeys(("effective", "permitted", "inheritable", "ambient", "bounding"), ())
    given = {
        "tid": 10,
        "name": "qemu",
        "uids": (2_000_000_000,) * 4,
        "gids": (2_000_000_000,) * 4,
        "groups": (),
        "capabilities": nothing,
        "no_new_privileges": True,
        "seccomp": 2,
        "filters": 2,
    }
    return Thread(**given | changes)


def process(**changes):
    """A hypervisor as it should be."""
    given = {
        "pid": 10,
        "program": "/usr/bin/qemu-system-x86_64",
        "inode": (1, 1),
        "threads": (thread(), thread(tid=11)),
        "namespaces": APART,
        "root": (9, 9),
        "descriptors": (
            fd("/dev/null", "device", device="c 1:3"),
            fd("socket:[1]", "socket"),
            fd("/memory", "file", True),
        ),
        "mounts": (Mount(point="/", type="tmpfs", options=("ro", "nosuid", "nodev")),),
        "cgroups": ("/x",),
        "limits": {"core": 0},
        "environment": 0,
        "tracer": 0,
    }
    return held.Held(**given | changes)


def fd(target, kind, writable=False, device=""):
    return Descriptor(number=5, target=target, kind=kind, writable=writable, path_only=False, device=device)


def found(seen, role="vmm"):
    told = Collector("x")
    jailed.check(seen, jailed.RULES[role], told, HOST, HOST_ROOT)
    return {(each.id, each.severity) for each in told.found}


def holding(*names, which="effective"):
    nothing = dict.fromkeys(("effective", "permitted", "inheritable", "ambient", "bounding"), ())
    return thread(tid=12, capabilities=nothing | {which: names})


def test_a_helper_as_it_should_be_has_no_finding():
    assert found(process()) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"threads": (thread(), thread(seccomp=0, filters=0))}, ("no-seccomp", "high")),
        ({"threads": (thread(), thread(filters=1))}, ("fewer-filters", "low")),
        ({"threads": (thread(), thread(no_new_privileges=False))}, ("no-new-privileges", "high")),
        ({"threads": (thread(), holding("CAP_CHOWN"))}, ("capabilities", "high")),
        ({"threads": (thread(), holding("CAP_CHOWN", which="bounding"))}, ("bounding-set", "medium")),
        ({"threads": (thread(uids=(5, 5, 0, 5)),)}, ("helper-root", "high")),
        ({"namespaces": {**APART, "net": HOST["net"]}}, ("namespace-net", "high")),
        ({"namespaces": {**APART, "pid": HOST["pid"]}}, ("namespace-pid", "high")),
        ({"root": HOST_ROOT}, ("host-root", "high")),
        ({"descriptors": (fd("/etc", "directory"),)}, ("descriptor", "high")),
        ({"descriptors": (fd("/etc/shadow", "file"),)}, ("descriptor", "medium")),
        ({"descriptors": (fd("/dev/null", "device", device="b 253:0"),)}, ("descriptor-device", "high")),
        ({"descriptors": (fd("/kernel (deleted)", "file", True),)}, ("descriptor-writable", "high")),
        ({"descriptors": (fd("/kernel", "file", True),)}, ("descriptor-writable", "high")),
        (
            {"mounts": (Mount(point="/x", type="ext4", options=("rw", "nosuid", "nodev")),)},
            ("mount-writable", "high"),
        ),
        ({"mounts": (Mount(point="/x", type="ext4", options=("ro", "nosuid")),)}, ("mount-devices", "high")),
        ({"mounts": (Mount(point="/x", type="ext4", options=("ro", "nodev")),)}, ("mount-setid", "medium")),
        ({"limits": {"core": -1}}, ("core-dumps", "medium")),
        ({"environment": 9}, ("helper-environment", "low")),
        ({"tracer": 77}, ("traced", "high")),
    ],
)
def test_what_a_hypervisor_holds_too_much_of_is_found(changes, expected):
    assert expected in found(process(**changes))


def test_a_tap_is_for_the_hypervisor_whatever_its_name_is():
    tap = process(descriptors=(fd("/net/tun", "device", device="c 10:200"),))
    assert found(tap) == set()
    assert ("descriptor-device", "high") in found(tap, "virtiofsd")


def test_virtiofsd_may_have_some_capabilities_in_a_user_namespace_of_its_own_alone():
    threads = (holding("CAP_CHOWN", "CAP_MKNOD"),)
    assert found(process(threads=threads, namespaces={**APART, "user": 99}), "virtiofsd") == set()
    assert ("capabilities", "high") in found(process(threads=threads), "virtiofsd")


def sandbox(*processes, **facts):
    seen = tuple(Process(role=role, held=each) for role, each in processes)
    recorded = {"bufferzone.vmm": "qemu 7.2.22", **facts}
    return Sandbox(ids=("one",), directory="/r/one", facts=recorded, processes=seen, unread=())


def test_a_sandbox_without_a_vm_is_a_finding_of_severity_high():
    bare = sandbox(**{"bufferzone.wall": "none: there is no VM"})
    assert [(each.id, each.severity) for each in walls.check(bare, HOST, HOST_ROOT)] == [("no-wall", "high")]


def test_helpers_of_two_sandboxes_with_one_uid_are_found():
    one = sandbox(("vmm", process()))
    assert walls.check_together([one]) == []
    told = walls.check_together([one, replace(one, ids=("two",))])
    assert [(each.id, each.where) for each in told] == [("shared-uid", "one, two")]


def test_emulation_is_a_finding_but_not_of_severity_high():
    told = walls.check(sandbox(("vmm", process()), **{"bufferzone.accelerator": "tcg"}), HOST, HOST_ROOT)
    assert [(each.id, each.severity) for each in told] == [("tcg", "medium")]


@pytest.mark.parametrize(
    ("version", "cves"),
    [
        ("qemu 7.2.22", []),
        ("qemu 10.0.13", []),
        ("qemu 7.2.10", ["CVE-2024-3446", "CVE-2024-8612"]),
        ("qemu 8.2.0", ["CVE-2023-6693", "CVE-2024-3446", "CVE-2024-8612"]),
    ],
)
def test_holes_of_a_version_in_devices_of_ours_are_told(version, cves):
    assert [hole.cve for hole in hypervisor.holes(hypervisor.parse(version))] == cves


@pytest.mark.parametrize("text", ["", "host 6.1", "qemu", "qemu seven.two", "qemu \u0667.2"])
def test_a_version_that_is_none_is_none(text):
    assert not text.startswith("qemu") or hypervisor.parse(text) is None


def machine(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {each.id: each.severity for each in host.check(host.Host(str(tmp_path), kvm_reason=""))}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("sys__devices__system__cpu__vulnerabilities__l1tf", "Vulnerable", ("cpu-vulnerable", "medium")),
        (
            "sys__devices__system__cpu__vulnerabilities__mds",
            "Mitigation: Clear CPU buffers; SMT vulnerable",
            ("cpu-partly", "low"),
        ),
        ("proc__cmdline", "root=/dev/vda mitigations=off quiet", ("mitigations-off", "high")),
        ("sys__kernel__mm__ksm__run", "1\n", ("ksm", "medium")),
        ("proc__sys__kernel__core_pattern", "|/usr/lib/coredump %P", ("core-pattern", "low")),
        ("proc__sys__kernel__unprivileged_bpf_disabled", "0", ("bpf-open", "medium")),
        ("sys__module__kvm_amd__parameters__nested", "1", ("nested-kvm", "low")),
    ],
)
def test_a_machine_s_weakness_is_found(tmp_path, name, text, expected):
    assert machine(tmp_path).get(expected[0]) is None
    assert machine(tmp_path, **{name: text})[expected[0]] == expected[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vmm": "host"}, ("vmm-host", "high")),
        ({"allow_annotations": ["bufferzone.kernel"]}, ("annotation", "medium")),
        ({"kvm": "allow"}, ("kvm-policy", "low")),
    ],
)
def test_a_setting_that_weakens_the_wall_is_found(changes, expected):
    told = Collector("settings")
    configuration.check_settings(Settings(**changes), told)
    assert expected in {(each.id, each.severity) for each in told.found}


def test_a_state_root_that_others_may_read_is_a_finding_of_severity_high(tmp_path):
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    assert not [each for each in configuration.check(str(root)) if each.id == "state-readable"]
    root.chmod(0o755)
    assert [each.severity for each in configuration.check(str(root)) if each.id == "state-readable"] == [
        "high"
    ]


def test_the_gravest_come_first_and_decide_the_exit_status():
    rows = [
        Finding(id="a", severity="low", where="x", message="m"),
        Finding(id="b", severity="high", where="x", message="m"),
    ]
    assert [each.id for each in finding.in_order(rows)] == ["b", "a"]
    assert finding.reaches(rows, "high")
    assert not finding.reaches(rows[:1], "medium")


def test_what_a_process_may_still_get_is_not_what_it_holds():
    """passt's bounding set is full in the user namespace that it makes, where it gives up all it holds."""
    assert process(threads=(holding("CAP_CHOWN", which="bounding"),)).capabilities == ()
    assert process(threads=(holding("CAP_CHOWN", which="ambient"),)).capabilities == ("CAP_CHOWN",)


def test_a_passt_is_known_though_its_path_is_gone(monkeypatch, tmp_path):
    (tmp_path / "passt").write_text("")
    monkeypatch.setattr(sandboxes, "_PASSTS", (str(tmp_path / "passt"), str(tmp_path / "none")))
    own = held.inode_of(str(tmp_path / "passt"))
    assert sandboxes._role("helper", process(program="/", inode=own)) == "passt"
    assert sandboxes._role("helper", process(program="/", inode=(0, 0))) == "helper"
    assert sandboxes._role("helper", process(program="/x/virtiofsd", inode=(0, 0))) == "virtiofsd"


def test_a_process_is_read_as_proc_tells_it():
    seen = held.read(os.getpid())
    assert seen.first.uids == os.getresuid()[:2] + (os.geteuid(),) * 2
    assert seen.first.tid == os.getpid()
    assert seen.root == (os.stat("/").st_dev, os.stat("/").st_ino)
    assert {"user", "mnt", "pid", "net"} <= seen.namespaces.keys()
    assert seen.namespaces == held.namespaces("/proc/self")


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag, *(name for name, _ in attrs)}
        if tag not in ("meta", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag


def test_the_page_is_whole_fetches_nothing_and_escapes_what_others_named():
    nasty = process(program="/x/<script>alert(1)</script>\x1b[2J")
    audit = report.Audit(
        findings=walls.check(sandbox(("helper", nasty)), HOST, HOST_ROOT),
        sandboxes=[sandbox(("vmm", process()), ("helper", nasty))],
        kernel="6.1",
        accelerator="tcg",
        when=0.0,
    )
    text = page.text(audit)
    tags = _Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    assert not tags.seen & {"script", "img", "link", "src", "href", "iframe", "onload"}
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
