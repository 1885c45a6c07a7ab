"""Who refused, as an error line tells it: a security module with what it denied, or a sysctl."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bufferzone import spawn
from bufferzone.errors import HostError, VmmError
from bufferzone.linux import denial, userns
from bufferzone.vm import launch
from bufferzone.vmm.explain import explain
from style.source import PACKAGE

PID = 4242
APPARMOR = (
    '5,1,2,-;audit: type=1400 audit(1.2:3): apparmor="DENIED" operation="open" class="file" '
    f'profile="passt" name="/etc/secret" pid={PID} comm="passt.avx2" requested_mask="r" denied_mask="r"\n'
)
USERNS = (
    '5,1,2,-;audit: type=1400 audit(1.2:3): apparmor="DENIED" operation="userns_create" class="namespace" '
    f'profile="unconfined" pid={PID} comm="python3" requested="userns_create" denied="userns_create"\n'
)
SELINUX = (
    "5,1,2,-;audit: type=1400 audit(1.2:3): avc:  denied  { read } for  "
    f'pid={PID} comm="virtiofsd" name="x" scontext=a:b:container_t:s0 tclass=file permissive=0\n'
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose /proc, kernel log and switches are files of `tmp_path`: nothing is denied or off."""
    (tmp_path / "proc" / str(PID) / "attr" / "apparmor").mkdir(parents=True)
    monkeypatch.setattr(denial, "_PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(denial, "_LIMITS", str(tmp_path))
    monkeypatch.setattr(denial, "_LOG", str(tmp_path / "kmsg"))
    monkeypatch.setattr(denial, "_SELINUX", str(tmp_path / "enforce"))
    switches = [(str(tmp_path / os.path.basename(path)), off, say) for path, off, say in userns._SWITCHES]
    monkeypatch.setattr(userns, "_SWITCHES", switches)
    return tmp_path


def set_label(machine: Path, text: str, module: str = "apparmor/") -> None:
    (machine / "proc" / str(PID) / "attr" / f"{module}current").write_text(text)


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("apparmor/", "passt (enforce)\n", "AppArmor profile passt"),
        ("", "/usr/bin/passt{,.avx2} (enforce)\n", "AppArmor profile /usr/bin/passt{,.avx2}"),
        ("apparmor/", "docker-default (kill)\n", "AppArmor profile docker-default"),
        ("apparmor/", "passt (complain)\n", ""),
        ("apparmor/", "crun (unconfined)\n", ""),
        ("apparmor/", "unconfined\n", ""),
        ("", "system_u:system_r:container_t:s0:c1,c2\0", "SELinux type container_t"),
        ("", "unconfined_u:unconfined_r:unconfined_t:s0\0", ""),
    ],
)
def test_a_label_counts_where_a_module_enforces_it(machine, module, text, expected):
    (machine / "enforce").write_text("1")
    set_label(machine, text, module)
    assert denial.label(PID) == expected


def test_selinux_that_only_warns_and_a_process_that_is_gone_confine_nothing(machine):
    (machine / "enforce").write_text("0")
    set_label(machine, "system_u:system_r:container_t:s0", "")
    assert denial.label(PID) == ""
    assert denial.label(PID + 1) == ""


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (APPARMOR, "AppArmor profile passt denied open /etc/secret"),
        (USERNS, "AppArmor profile unconfined denied userns_create userns_create"),
        (SELINUX, f'SELinux denied  {{ read }} for  pid={PID} comm="virtiofsd" name="x"'),
    ],
)
def test_what_the_kernel_denied_is_told_from_its_log(machine, record, told):
    (machine / "kmsg").write_text(record)
    assert denial.hint(errno.EACCES, PID, "execute /usr/bin/passt").startswith(told)


def test_a_call_that_the_filter_refused_is_named(machine):
    (machine / "kmsg").write_text(
        f"5,1,2,-;audit: type=1326 audit(1.2:3): auid=4294967295 uid=2000000000 gid=2000000000 ses=4 "
        f'pid={PID} comm="qemu-system-x86" exe="/usr/bin/qemu" sig=0 arch=c000003e syscall=449 compat=0'
    )
    told = "the system call futex_waitv is not on its list: src/bufferzone/allowlists.py"
    assert denial.filtered(PID) == told
    assert denial.filtered(PID + 1) == ""


@pytest.mark.parametrize(
    ("age", "namespace", "expected"), [(1, 7, "fork"), (100, 7, ""), (1, 0xEFFFFFFC, "")]
)
def test_in_a_pid_namespace_the_uid_tells_whose_call_it_was(machine, monkeypatch, age, namespace, expected):
    """The kernel's log has pids of the whole machine."""
    uid = os.stat(machine / "proc" / str(PID)).st_uid or 2000000000
    (machine / "kmsg").write_text(
        f"5,1,2,-;audit: type=1326 audit({time.time() - age:.3f}:3): auid=4294967295 uid={uid} gid=9 ses=4 "
        'pid=77 comm="qemu-system-x86" exe="/usr/bin/qemu" sig=31 arch=c000003e syscall=57 compat=0'
    )
    seen = {str(PID): (0, 0, 0, 0, uid), "pid": (0, namespace, 0, 0, 0)}
    monkeypatch.setattr(
        denial.os, "stat", lambda path: os.stat_result((*seen[os.path.basename(path)], 0, 0, 0, 0, 0))
    )
    told = denial.filtered(PID)
    assert told == (
        f"the system call {expected} is not on its list: src/bufferzone/allowlists.py" if expected else ""
    )


def test_a_denial_of_another_process_is_not_told(machine):
    (machine / "kmsg").write_text(APPARMOR)
    assert denial.hint(errno.EACCES, PID + 1, "open /dev/kvm") == ""


def test_without_the_log_the_profile_and_where_to_look_are_told(machine):
    set_label(machine, "passt (enforce)\n")
    told = denial.hint(errno.EPERM, PID, "execute /usr/bin/passt")
    assert told == "AppArmor profile passt confines it; what it denied: dmesg | grep -i denied"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize(
    ("name", "off"),
    [
        ("max_user_namespaces", "0"),
        ("unprivileged_userns_clone", "0"),
        ("apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_a_namespace_that_is_refused_is_told_with_the_switch(machine, number, name, off):
    (machine / name).write_text(f"{off}\n")
    told = denial.hint(number, PID, "create a user namespace")
    assert told.startswith("user namespaces are switched off: as root, sysctl ")
    assert f".{name}=" in told
    assert denial.hint(number, PID, "open /dev/kvm") == ""


@pytest.mark.parametrize("kind", ["user", "pid", "net"])
def test_a_limit_at_zero_is_named(machine, kind):
    (machine / f"max_{kind}_namespaces").write_text("0\n")
    told = denial.hint(errno.ENOSPC, PID, "create namespaces")
    assert told == f"{kind} namespaces are switched off: as root, sysctl user.max_{kind}_namespaces=15000"


def test_a_limit_that_is_reached_is_told_and_a_full_disk_is_not(machine):
    assert (
        denial.hint(errno.ENOSPC, PID, "create namespaces") == "a limit of namespaces is reached: sysctl user"
    )
    assert denial.hint(errno.ENOSPC, PID, "build the root") == ""


def test_a_helper_that_may_not_be_executed_is_told_with_its_profile(monkeypatch):
    monkeypatch.setattr(denial, "label", lambda pid: "AppArmor profile shim")
    monkeypatch.setattr(denial, "_LOG", "/nonexistent")

    def enter(talk: spawn.Conversation) -> None:
        talk.step = "execute /usr/bin/passt"
        raise PermissionError(errno.EACCES, "")

    with pytest.raises(HostError) as caught:
        spawn.start("passt", ["/bin/true"], enter)
    assert caught.value.line().startswith(
        "cannot start passt: execute /usr/bin/passt: Permission denied (hint: "
    )
    assert "AppArmor profile shim confines it" in caught.value.hint


SEGFAULT = ["/bin/sh", "-c", "kill -SEGV $$"]  # as where a profile lets no program be mapped


@pytest.mark.parametrize(
    ("argv", "denied"), [(["/bin/false"], True), (SEGFAULT, True), (["/bin/true"], False)]
)
def test_a_helper_that_fails_later_is_asked_for_its_profile_before_it_is_forgotten(monkeypatch, argv, denied):
    def label(pid: int) -> str:
        assert os.path.exists(f"/proc/{pid}")  # not reaped yet
        return "AppArmor profile passt"

    monkeypatch.setattr(denial, "label", label)
    monkeypatch.setattr(denial, "_LOG", "/nonexistent")
    with spawn.start("passt", argv, lambda talk: None) as child:
        child.wait_exit()
        assert ("AppArmor profile passt" in child.denied) is denied


def test_nobody_is_asked_about_a_helper_that_was_killed_by_us(monkeypatch):
    monkeypatch.setattr(denial, "label", lambda pid: pytest.fail("asked"))
    with spawn.start("sleep", ["/bin/sleep", "1000"], lambda talk: None) as child:
        pass
    assert (child.wait_exit(), child.denied) == (-signal.SIGKILL, "")


def test_a_vm_that_fails_for_its_share_says_what_was_denied_to_the_shares_daemon(monkeypatch):
    monkeypatch.setattr(denial, "label", lambda pid: "AppArmor profile virtiofsd")
    monkeypatch.setattr(denial, "_LOG", "/nonexistent")

    def fail() -> None:
        begun = spawn.start("virtiofsd", ["/bin/false"], lambda talk: None)
        with begun as daemon, launch.naming_what_was_denied_to(daemon):
            raise VmmError("the virtual machine failed", hint="it says what is missing")

    with pytest.raises(VmmError) as caught:
        fail()
    assert caught.value.hint.startswith("AppArmor profile virtiofsd confines it")


def test_the_explanation_of_a_vm_that_failed_names_who_denied():
    error = explain("start QEMU", program="QEMU", status=1, denied="AppArmor profile qemu denied open /x")
    assert error.hint == "AppArmor profile qemu denied open /x"


LIMITED = """
import sys
sys.path.insert(0, {source!r})
with open("/proc/sys/user/max_{kind}_namespaces", "w") as file:
    file.write("0")
from bufferzone import spawn
from bufferzone.errors import HostError, VmmError
from bufferzone.linux import process
def enter(talk):
    talk.step = "create namespaces"
    process.unshare(process.CLONE_NEW{flag})
try:
    spawn.start("virtiofsd", ["/bin/true"], enter)
except HostError as error:
    print(error.line())
"""


@pytest.mark.parametrize("kind", ["user", "net", "mnt"])
def test_a_real_limit_of_zero_is_one_line_that_names_the_sysctl(kind):
    """In a user namespace of its own: its limits are nobody else's."""
    flag = {"mnt": "NS"}.get(kind, kind.upper())
    text = LIMITED.format(source=str(PACKAGE.parent), kind=kind, flag=flag)
    inside = ["unshare", "--user", "--map-root-user", "--", sys.executable, "-c", text]
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no user namespace here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "cannot start virtiofsd: create namespaces: No space left on device (hint: "
        f"{kind} namespaces are switched off: as root, sysctl user.max_{kind}_namespaces=15000)\n"
    )
