"""What `podman run` was asked for holds inside: one container with every option, one with none, one with all
rights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("nothing_left")]

#: mkdir fails with EDOM, which no kernel says by itself
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 33}],
}
CAPABILITIES = {"CAP_CHOWN": 0, "CAP_NET_BIND_SERVICE": 10, "CAP_SYS_ADMIN": 21, "CAP_SYS_PTRACE": 19}


def status(podman, name: str, *words: object) -> dict[str, str]:
    """/proc/self/status of an exec, `words` being options of it."""
    lines = podman("exec", *words, name, "cat", "/proc/self/status").lines
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cgroup(podman, name: str, file: str) -> str:
    return podman("exec", name, "cat", f"/sys/fs/cgroup/{file}").text


@pytest.fixture(scope="module")
def asked(podman, nothing_left):
    """A container with everything asked for; its process is `sleep` of user app with one more group."""
    profile, variables = podman.directory / "profile.json", podman.directory / "variables"
    profile.write_text(json.dumps(PROFILE))
    variables.write_text("FROM_FILE=one two=three\n# a comment\nUNICODE=grüße\n")
    words = ["--detach", "--name", "asked", "--user", "app", "--group-add", "4322", "--workdir", "/var/tmp"]
    words += ["--env-file", variables, "--env", "GIVEN=a'b \"c", "--hostname", "zone.example"]
    words += ["--cap-drop", "all", "--cap-add", "SYS_PTRACE", "--cap-add", "chown"]
    words += ["--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges"]
    words += ["--ulimit", "nofile=512:768", "--ulimit", "core=0", "--sysctl", "kernel.shm_rmid_forced=1"]
    words += ["--sysctl", "net.ipv4.ip_unprivileged_port_start=81", "--pids-limit", "77", "--memory", "96m"]
    words += ["--memory-swap", "128m", "--cpu-shares", "512", "--cpus", "0.5", "--oom-score-adj", "123"]
    words += ["--tmpfs", "/scratch:size=8m,mode=1777,noexec", "--shm-size", "3m"]
    words += ["--annotation", "bufferzone.vcpus=2", "--entrypoint", '["sleep", "1000000"]', "--umask", "0027"]
    podman("run", *words, podman.image)
    return "asked"


def test_the_first_process_is_the_entrypoint_of_the_user(podman, asked):
    row = podman("exec", "--user", "root", asked, "ps", "-o", "pid,user,args").lines[1]
    assert row.split() == ["1", "app", "sleep", "1000000"]


def test_the_user_comes_with_its_groups(podman, asked):
    assert podman("exec", asked, "id").text == "uid=1234(app) gid=1235(app) groups=4321(extra),4322" or (
        podman("exec", asked, "id", "-G").text.split() == ["1235", "4321", "4322"]
    )


@pytest.mark.parametrize(
    ("user", "uid", "groups"),
    [
        ("root", "0", {"0"}),
        ("app", "1234", {"1235", "4321"}),
        ("77:88", "77", {"88"}),
        ("1234:0", "1234", {"0"}),
    ],
)
def test_an_exec_takes_the_user_it_is_told(podman, asked, user, uid, groups):
    assert podman("exec", "--user", user, asked, "id", "-u").text == uid
    assert set(podman("exec", "--user", user, asked, "id", "-G").text.split()) - {"4322"} == groups


def test_the_process_starts_in_the_working_directory(podman, asked):
    assert podman("exec", asked, "pwd").text == "/var/tmp"
    assert podman("exec", "--workdir", "/srv", asked, "pwd").text == "/srv"


def test_the_environment_is_passed_byte_for_byte(podman, asked):
    found = set(podman("exec", "--env", "MORE=1=2", asked, "env").lines)
    assert {
        "FROM_FILE=one two=three",
        "UNICODE=grüße",
        "GIVEN=a'b \"c",
        "MORE=1=2",
        "HOME=/home/app",
    } - found <= {"HOME=/home/app"}
    first = podman("exec", asked, "cat", "/proc/1/environ").out.decode().split("\0")
    assert {"FROM_FILE=one two=three", "UNICODE=grüße", "GIVEN=a'b \"c", "HOSTNAME=zone.example"} <= set(
        first
    )


def test_the_hostname_is_known_inside(podman, asked):
    assert podman("exec", asked, "hostname").text == "zone.example"
    assert "zone.example" in podman("exec", asked, "cat", "/etc/hosts", "/etc/hostname").text


def test_only_the_capabilities_asked_for_are_there(podman, asked):
    wanted = 1 << CAPABILITIES["CAP_CHOWN"] | 1 << CAPABILITIES["CAP_SYS_PTRACE"]
    assert int(status(podman, asked)["CapBnd"], 16) == wanted
    assert int(status(podman, asked, "--user", "root")["CapEff"], 16) == wanted


def test_an_exec_with_privileges_has_them_all_in_its_own_vm(podman, asked):
    found = status(podman, asked, "--privileged", "--user", "root")
    assert int(found["CapEff"], 16) & 1 << CAPABILITIES["CAP_SYS_ADMIN"]


def test_the_seccomp_profile_decides(podman, asked):
    assert status(podman, asked)["Seccomp"] == "2"
    done = podman("exec", asked, "mkdir", "/scratch/new", status=1)
    assert "argument out of domain" in done.complaint.lower()  # EDOM, the profile's own choice


def test_no_new_privileges_is_set(podman, asked):
    assert status(podman, asked)["NoNewPrivs"] == "1"


def test_limits_of_processes_hold(podman, asked):
    first = podman("exec", "--user", "root", asked, "cat", "/proc/1/limits").text
    for text in (first, podman("exec", asked, "cat", "/proc/self/limits").text):
        rows = {line[:26].strip(): line[26:].split()[:2] for line in text.splitlines()}
        assert rows["Max open files"] == ["512", "768"]
        assert rows["Max core file size"] == ["0", "0"]


def test_sysctls_are_set(podman, asked):
    assert podman("exec", asked, "cat", "/proc/sys/kernel/shm_rmid_forced").text == "1"
    assert podman("exec", asked, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").text == "81"


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("pids.max", "77"),
        ("memory.max", str(96 << 20)),
        ("memory.swap.max", str(32 << 20)),
        ("cpu.max", "50000 100000"),
    ],
)
def test_the_limits_are_those_of_the_guests_cgroup(podman, asked, file, value):
    assert cgroup(podman, asked, file) == value


def test_the_oom_score_is_set(podman, asked):
    assert podman("exec", "--user", "root", asked, "cat", "/proc/1/oom_score_adj").text == "123"


def test_a_tmpfs_has_its_options(podman, asked):
    rows = [row.split() for row in podman("exec", asked, "cat", "/proc/mounts").lines]
    (options,) = [row[3].split(",") for row in rows if row[1] == "/scratch"]
    assert {"rw", "nosuid", "nodev", "noexec", "size=8192k"} <= set(options)
    podman("exec", asked, "sh", "-c", "echo 1 > /scratch/file")
    done = podman.any("exec", asked, "dd", "if=/dev/zero", "of=/scratch/file", "bs=1M", "count=9")
    assert done.status == 1
    assert "no space" in done.complaint.lower()


def test_shared_memory_has_the_size_asked_for(podman, asked):
    assert podman("exec", asked, "df", "-m", "/dev/shm").lines[1].split()[1] == "3"


def test_the_umask_is_the_one_asked_for(podman, asked):
    assert "Umask:\t0027" in podman("exec", asked, "cat", "/proc/1/status").lines


def test_an_annotation_gives_the_vm_two_cpus(podman, asked):
    assert podman("exec", asked, "nproc").text == "2"


def test_update_changes_the_limits_of_the_guest(podman, asked):
    done = podman.any("update", "--memory", "64m", "--cpus", "0.25", asked)
    if "unrecognized command" in done.complaint:
        pytest.skip("podman update needs podman 4.4")
    assert done.status == 0
    assert cgroup(podman, asked, "memory.max") == str(64 << 20)


@pytest.fixture(scope="module")
def fixed(podman, nothing_left):
    """A read-only container with the default rights, without a seccomp filter."""
    words = ("--detach", "--name", "fixed", "--read-only", "--security-opt", "seccomp=unconfined")
    podman("run", *words, podman.image, "sleep", "1000000")
    return "fixed"


@pytest.mark.parametrize("path", ["/file", "/etc/passwd", "/srv/plain"])
def test_a_read_only_container_cannot_be_changed(podman, fixed, path):
    done = podman("exec", fixed, "sh", "-c", f"echo > {path}", status=1)
    assert "read-only file system" in done.complaint.lower()


@pytest.mark.parametrize("path", ["/tmp", "/run", "/var/tmp", "/dev/shm"])
def test_podmans_tmpfs_of_a_read_only_container_can_be_written(podman, fixed, path):
    podman("exec", fixed, "sh", "-c", f"echo 1 > {path}/file && test -s {path}/file")


def test_the_rights_without_options_are_podmans_defaults(podman, fixed):
    found = status(podman, fixed)
    assert found["Seccomp"] == "0"
    assert found["NoNewPrivs"] == "0"
    capabilities = int(found["CapEff"], 16)
    assert capabilities & 1 << CAPABILITIES["CAP_CHOWN"]
    assert not capabilities & 1 << CAPABILITIES["CAP_SYS_ADMIN"]
    done = podman("exec", fixed, "mount", "-t", "tmpfs", "none", "/tmp", status=1)
    assert "permission denied" in done.complaint.lower()


def test_masked_and_read_only_paths_of_proc_are_so(podman, fixed):
    assert podman("exec", fixed, "cat", "/proc/keys", "/proc/timer_list").out == b""
    assert podman("exec", fixed, "ls", "/proc/acpi").out == b""
    done = podman("exec", fixed, "sh", "-c", "echo 1 > /proc/sys/kernel/domainname", status=1)
    assert "read-only file system" in done.complaint.lower()


@pytest.fixture(scope="module")
def privileged(podman, nothing_left):
    """A privileged container that is read-only all the way, tmpfs included."""
    words = ("--detach", "--name", "privileged", "--privileged", "--read-only", "--read-only-tmpfs=false")
    podman("run", *words, podman.image, "sleep", "1000000")
    return "privileged"


def test_a_privileged_container_is_root_of_its_vm_only(podman, privileged):
    assert int(status(podman, privileged)["CapEff"], 16) & 1 << CAPABILITIES["CAP_SYS_ADMIN"]
    script = "mount -t tmpfs none /srv && hostname changed && echo 1 > /proc/sys/vm/drop_caches && hostname"
    assert podman("exec", privileged, "sh", "-c", script).text == "changed"
    assert os.uname().nodename != "changed"
    host = {path.name for path in Path("/sys/class/block").iterdir()}
    assert set(podman("exec", privileged, "ls", "/sys/class/block").text.split()).isdisjoint(host - {"loop0"})


def test_a_container_without_its_tmpfs_cannot_write_there(podman, privileged):
    done = podman("exec", privileged, "sh", "-c", "echo 1 > /tmp/file", status=1)
    assert "read-only file system" in done.complaint.lower()
