"""The spine from the other side: containerd drives the same shim over the Task API with `ctr`.

A containerd of our own, in a temporary directory, without the CRI plug-in; the user's is not touched.
"""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

import pytest

from bufferzone import config
from vm.containerd import RUNTIME, SCRIPT, TIMEOUT_S, Containerd, needs_containerd, program, version
from vm.podman import read_until
from vm.verbs import await_true

pytestmark = [pytest.mark.vm, needs_containerd]


@pytest.fixture(scope="module")
def containerd(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ctrd")
    daemon = Containerd(directory)
    daemon.start()
    try:
        archive = str(directory / "busybox.tar")
        subprocess.run(["/usr/bin/python3", SCRIPT, archive], check=True, capture_output=True, timeout=180)
        daemon.ctr("images", "import", archive)
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="module")
def image(containerd):
    names = containerd.ctr("images", "ls", "-q").stdout.decode().split()
    assert names
    return names[0]


def shims():
    """Pids of running shims of this test's namespace."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if b"bz-test" in words and any(b"bufferzone" in word for word in words):
            found.append(int(pid))
    return found


def await_end(pids):
    """Wait until each process is gone."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([fd], [], [], 30)[0], f"{pid} lives on"
        os.close(fd)


def end(pids):
    """SIGKILL, and wait."""
    for pid in pids:
        os.kill(pid, 9)
    await_end(pids)


def test_run_prints_the_guests_kernel_and_passes_the_exit_status(containerd, image):
    done = containerd.ctr(
        "run",
        "--rm",
        "--runtime",
        RUNTIME,
        image,
        "run1",
        "sh",
        "-c",
        "uname -r; echo no >&2; exit 7",
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.decode().strip() not in ("", os.uname().release)
    assert b"no" in done.stderr


def test_a_task_runs_execs_is_measured_and_deleted_without_a_trace(containerd, image):
    containerd.ctr("run", "-d", "--runtime", RUNTIME, image, "task1", "sleep", "1000")
    assert "RUNNING" in containerd.ctr("task", "ls").stdout.decode()
    echoed = containerd.ctr("task", "exec", "--exec-id", "e1", "task1", "cat", stdin=b"through the wall\n")
    assert echoed.stdout == b"through the wall\n"
    assert (
        containerd.ctr(
            "task", "exec", "--exec-id", "e2", "task1", "sh", "-c", "exit 9", check=False
        ).returncode
        == 9
    )
    missing = containerd.ctr("task", "exec", "--exec-id", "e3", "task1", "nosuchprogram", check=False)
    assert missing.returncode != 0
    assert b"executable file not found" in missing.stderr
    assert "pids.current" in containerd.ctr("task", "metrics", "task1").stdout.decode()
    containerd.ctr("task", "exec", "-d", "--exec-id", "e4", "task1", "sleep", "1000")
    rows = containerd.ctr("task", "ps", "task1").stdout.decode().splitlines()[1:]
    shown = [Path(f"/proc/{row.split()[0]}/cmdline").read_bytes().rstrip(b"\0") for row in rows]
    assert shown == [b"sleep\x001000"] * 2
    networks = {os.stat(f"/proc/{row.split()[0]}/ns/net").st_ino for row in rows}
    assert len(networks - {os.stat("/proc/self/ns/net").st_ino}) == 1
    containerd.ctr("task", "pause", "task1")
    assert "PAUSED" in containerd.ctr("task", "ls").stdout.decode()
    containerd.ctr("task", "resume", "task1")
    containerd.ctr("task", "kill", "-s", "KILL", "task1")
    containerd.ctr("task", "rm", "-f", "task1")
    containerd.ctr("containers", "rm", "task1")
    assert containerd.ctr("containers", "ls", "-q").stdout == b""


def test_containers_of_a_pod_share_the_namespaces_that_they_name_by_the_sandboxs_pid(containerd, image):
    pod = ["run", "-d", "--runtime", RUNTIME, "--annotation", "io.containerd.runc.v2.group=pod"]
    containerd.ctr(*pod, image, "sandbox", "sleep", "1000")
    (row,) = containerd.ctr("task", "ls").stdout.decode().splitlines()[1:]
    given = [
        word for kind in ("ipc", "uts") for word in ("--with-ns", f"{kind}:/proc/{row.split()[1]}/ns/{kind}")
    ]
    containerd.ctr(*pod, *given, image, "member", "sleep", "1000")

    def links(id):
        look = "for kind in ipc uts pid; do readlink /proc/self/ns/$kind; done"
        return containerd.ctr("task", "exec", "--exec-id", "e", id, "sh", "-c", look).stdout.split()

    same = [one == other for one, other in zip(links("sandbox"), links("member"), strict=True)]
    assert same == [True, True, False]
    for id in ("member", "sandbox"):
        containerd.ctr("task", "rm", "-f", id)
        containerd.ctr("containers", "rm", id)


def test_containers_of_a_group_live_in_one_vm_whichever_of_them_goes_first(containerd, image):
    others = set(shims())
    group = ["--annotation", "io.containerd.runc.v2.group=together"]
    for id in ("group1", "group2"):
        containerd.ctr("run", "-d", "--runtime", RUNTIME, *group, image, id, "sleep", "1000")
    containerd.ctr("task", "rm", "-f", "group1")
    boot_id = ("cat", "/proc/sys/kernel/random/boot_id")
    before = containerd.ctr("task", "exec", "--exec-id", "e1", "group2", *boot_id).stdout
    containerd.ctr("run", "-d", "--runtime", RUNTIME, *group, image, "group3", "sleep", "1000")
    after = [
        containerd.ctr("task", "exec", "--exec-id", "e2", id, *boot_id).stdout for id in ("group2", "group3")
    ]
    assert after == [before, before]
    left = set(shims()) - others
    for id in ("group2", "group3"):
        containerd.ctr("task", "rm", "-f", id)
    await_end(left)
    containerd.ctr("containers", "rm", "group1", "group2", "group3")
    assert not [name for name in os.listdir("/run/bufferzone-containerd/bz-test") if "group" in name]


def test_a_node_is_set_up_by_a_container_that_runs_and_taken_back(containerd, tmp_path):
    path = tmp_path / "config.toml"
    words = ["node", "setup", "--for", "containerd", "--config", str(path), "--address", containerd.socket]
    bz = Path(__file__).parents[2] / "bin" / "bz"
    done = subprocess.run([bz, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("containerd: a container ran in a VM, whose kernel is ")
    assert containerd.ctr("containers", "ls", "-q", namespace="bufferzone-check").stdout == b""
    asked = [program("containerd"), "-c", path, "config", "dump"]
    dump = subprocess.run(asked, capture_output=True, text=True)
    assert "runtimes.bufferzone]" in dump.stdout
    words[1] = "undo"
    subprocess.run([bz, *words], capture_output=True, check=True, timeout=TIMEOUT_S)
    assert not path.exists()


def test_a_log_program_takes_the_output(containerd, image, tmp_path):
    program = tmp_path / "logger"
    program.write_text(
        "#!/usr/bin/python3 -IS\nimport os, sys\nos.close(5)\n"
        "out, err = (open(fd).read() for fd in (3, 4))\n"
        "with open(sys.argv[2], 'w') as file:\n    file.write(out + err)\n"
    )
    program.chmod(0o755)
    os.mkfifo(tmp_path / "told")
    uri = f"binary://{program}?to={tmp_path}/told"
    words = ["run", "-d", "--log-uri", uri, "--runtime", RUNTIME, image, "logged1"]
    with open(os.open(tmp_path / "told", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as told:
        containerd.ctr(*words, "sh", "-c", "echo out; echo err >&2")
        assert select.select([told], [], [], TIMEOUT_S)[0]
        assert read_until(told, b"err\n") == b"out\nerr\n"
    # its output ends before it does
    await_true(lambda: b"STOPPED" in containerd.ctr("task", "ls").stdout, "the end of logged1")
    gone = containerd.ctr("task", "kill", "-s", "TERM", "logged1", check=False)
    kind = b": not found" if version() < (2, 0) else b""  # of the error, told by older ones
    assert gone.stderr == b"ctr: container not running" + kind + b"\n"
    containerd.ctr("task", "rm", "logged1")
    containerd.ctr("containers", "rm", "logged1")


def test_an_out_of_memory_kill_is_an_event_before_the_exit(containerd, image):
    command = [program("ctr"), "-a", containerd.socket, "-n", "bz-test", "events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as events:
        script = "x=a; while :; do x=$x$x; done"
        words = ["run", "--rm", "--runtime", RUNTIME, "--memory-limit", str(64 << 20), image, "oom1"]
        done = containerd.ctr(*words, "sh", "-c", script, check=False)
        seen = read_until(events.stdout, b"/tasks/delete").decode()
        events.terminate()
    topics = [word for word in seen.split() if word.startswith("/tasks/")]
    assert done.returncode == 137
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")
    assert topics.count("/tasks/oom") == 1


def test_a_failing_create_says_why_and_leaves_no_shim(containerd, image):
    done = containerd.ctr("run", "--runtime", RUNTIME, "--rm", image, "bad1", "/nosuch/program", check=False)
    assert done.returncode != 0
    assert b"no such file or directory" in done.stderr


def test_a_killed_shim_is_noticed_and_cleaned_up(containerd, image):
    containerd.ctr("run", "-d", "--runtime", RUNTIME, image, "lost1", "sleep", "1000")
    victims = shims()
    assert victims
    end(victims)
    containerd.ctr("task", "rm", "-f", "lost1", check=False)
    containerd.ctr("containers", "rm", "lost1", check=False)
    assert "lost1" not in containerd.ctr("task", "ls").stdout.decode()
    await_end(shims())  # containerd's own clean-up call may still run
    assert not shims()


def test_a_runtime_of_the_engines_has_settings_of_its_own(containerd, image, tmp_path):
    settings = tmp_path / "small.toml"
    words = ("run", "--rm", "--runtime", RUNTIME, "--runtime-config-path", str(settings), image, "small")
    settings.write_text("memory_mib = 192\n")
    total_kib = int(containerd.ctr(*words, "grep", "MemTotal", "/proc/meminfo").stdout.split()[1])
    assert total_kib < 192 << 10
    settings.write_text("memory_mb = 192\n")
    done = containerd.ctr(*words, "true", check=False)
    assert f"{settings}: memory_mb: unknown setting".encode() in done.stderr
    containerd.ctr("containers", "delete", "small", check=False)


def test_a_root_file_system_of_mounts_becomes_a_disk_which_the_next_container_finds(
    containerd, image, tmp_path
):
    settings = tmp_path / "disk.toml"
    settings.write_text('rootfs = "block"\n')
    words = ("--runtime", RUNTIME, "--runtime-config-path", str(settings), image)
    roots = Path(config.load().image_store).parent / "roots"
    shown, kept = [], []
    for name in ("one", "two"):
        containerd.ctr("run", "-d", *words, name, "sleep", "300")
        script = "grep ' / ' /proc/mounts; echo written > /here; cat /here; ls /"
        shown.append(containerd.ctr("tasks", "exec", "--exec-id", "x", name, "sh", "-c", script).stdout)
        kept.append(sorted(os.listdir(roots)))
        containerd.ctr("tasks", "delete", "-f", name)
        containerd.ctr("containers", "delete", name)
    assert shown[0].startswith(b"overlay / overlay ")
    assert b"\nwritten\nbin\n" in shown[0]
    assert shown[1] == shown[0]
    assert kept[1] == kept[0] != []


def test_a_container_is_saved_and_one_that_is_to_go_on_from_there_is_refused(containerd, image):
    ref = "localhost/saved:1"
    words = ("--annotation", "bufferzone.rootfs=block", "--runtime", RUNTIME, image, "saved")
    containerd.ctr("run", "-d", *words, "sleep", "300")
    containerd.ctr("containers", "checkpoint", "--task", "--image", "saved", ref)
    done = containerd.ctr("containers", "restore", "--live", "restored", ref, check=False)
    assert b"cannot make restored from a checkpoint: its VM was begun before" in done.stderr
    assert b"restored" not in containerd.ctr("tasks", "ls").stdout
    containerd.ctr("tasks", "delete", "-f", "saved")
    for name in ("saved", "restored"):
        containerd.ctr("containers", "delete", name)
    await_true(lambda: shims() == [], "a shim lives on")
