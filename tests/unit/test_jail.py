"""What a helper keeps and what not: a busybox is started in the jail and looks around."""

import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bufferzone import jail, spawn
from bufferzone.errors import BugError, HostError
from bufferzone.linux import landlock, process
from unit.shell_calls import SHELL

BUSYBOX = "/usr/bin/busybox"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: an own uid and mount namespaces"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs busybox-static"),
]
UID = jail.UID_BASE + 2 * jail.UID_SLOTS - 2  # not one that a running sandbox on this machine would get


def run(script: str, **changes: object) -> tuple[int | None, str]:
    """Run a shell script in a jail; returns the exit status and all it printed."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    values: dict[str, object] = {
        "name": "test",
        "uid": UID,
        "gid": UID,
        "log_fd": writer,
        "calls": SHELL,
        "binds": (jail.JailBind(source=BUSYBOX, target="/busybox"),),
        **changes,
    }
    confined = jail.Jail(**values)  # type: ignore[arg-type]
    try:
        with jail.start(["/busybox", "sh", "-c", script], confined) as child:
            os.close(writer)
            writer = -1
            with open(reader, closefd=False) as file:
                text = file.read()
            return child.wait_exit(10), text
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def test_the_root_holds_what_was_given_and_is_read_only() -> None:
    _, text = run("/busybox ls -A / /dev; /busybox touch /x; /busybox touch /dev/x; /busybox ls /proc")
    assert text.split("\n")[:3] == ["/:", "busybox", "dev"]
    assert text.count("Read-only file system") == 2
    assert "/proc: No such file" in text
    assert [word for word in text.split() if word in ("null", "zero", "urandom", "kvm", "vda")] == [
        "null",
        "urandom",
        "zero",
    ]


def test_a_copied_file_of_proc_looks_as_a_process_own() -> None:
    """Debian's AppArmor profiles say `owner @{PROC}/@{pid}/uid_map`: a number, and the uid of who reads."""
    script = "p=/proc/self/uid_map; /busybox cat $p; /busybox readlink -f $p; /busybox stat -c '%u %a' $p"
    _, text = run(script, own_proc=("uid_map",))
    said, *others = text.splitlines()
    assert said == Path("/proc/self/uid_map").read_text().rstrip()
    assert others == ["/proc/1/uid_map", f"{UID} 400"]


def test_it_has_its_own_uid_no_capability_and_filters() -> None:
    _, text = run("/busybox cat /proc/self/status; /busybox id", proc=("self/status",))
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(UID)] * 4
    assert fields["Gid"].split() == [str(UID)] * 4
    assert fields["Groups"].strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert fields["NSpid"].split()[-1] == "1"


def test_environment_and_descriptors_are_emptied() -> None:
    secret = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(secret, True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        script = "/busybox env; for n in $(/busybox seq 0 99); do (: >&$n) 2>/dev/null && echo has $n; done"
        _, text = run(f"{script}; echo hi >&{number}", keep_fds=(number,))
        assert ours.recv(10) == b"hi\n"
    os.close(secret)
    held = {int(line.split()[1]) for line in text.splitlines() if line.startswith("has")}
    # 10 and up may be the shell's own copies; what it was given is 0, 1, 2 and the socket
    assert held & set(range(10)) == {0, 1, 2} | ({number} & set(range(10)))
    assert number in held
    assert secret not in held
    assert "PATH=/sbin" in text  # busybox sets one when there is none
    assert os.environ["PATH"] not in text


def test_its_network_is_empty_and_it_sees_no_other_process() -> None:
    _, text = run("/busybox ip -o link; echo pid $$")
    *links, pid = text.strip().split("\n")
    assert len(links) == 1
    assert "lo: <LOOPBACK> " in links[0]
    assert pid == "pid 1"


def test_a_limit_is_lowered_and_cores_are_off() -> None:
    _, text = run(
        "/busybox cat /proc/self/limits", proc=("self/limits",), limits=((resource.RLIMIT_NOFILE, 64),)
    )
    limits = {row[:26].strip(): row[26:].split()[:2] for row in text.splitlines()}
    assert limits["Max open files"] == ["64", "64"]
    off = ("Max core file size", "Max msgqueue size", "Max realtime priority", "Max nice priority")
    assert [limits[name] for name in off] == [["0", "0"]] * 4


@pytest.mark.skipif(not landlock.version(), reason="the kernel has no Landlock")
def test_what_may_be_written_can_be_less_than_what_is_mounted_writable(tmp_path: Path) -> None:
    for name in ("memory", "other"):
        (tmp_path / name).write_text("before")
    os.chmod(tmp_path, 0o777)
    for path in tmp_path.iterdir():
        path.chmod(0o666)
    tree = jail.JailBind(source=os.open(tmp_path, os.O_PATH | os.O_DIRECTORY), target="/tree", writable=True)
    status, text = run(
        "echo after >/tree/memory; echo x >/dev/null && echo null; echo x >/tree/other; echo x >/tree/new;"
        "/busybox rm /tree/other; /busybox cat /tree/memory",
        binds=(jail.JailBind(source=BUSYBOX, target="/busybox"), tree),
        restricted=landlock.Rules(writable=("/tree/memory", "/dev/null")),
    )
    assert text.count("Permission denied") == 3, text
    assert "null\n" in text
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "memory": "after\n",
        "other": "before",
    }
    assert status == 0


def test_capabilities_in_a_user_namespace_reach_the_tree_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (tmp_path / "private").chmod(0o600)
    tree = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    status, text = run(
        "/busybox cat /tree/private && /busybox chown 7:8 /tree/private; /busybox mknod /tree/null c 1 3;"
        "/busybox mount -t tmpfs x /tree; /busybox hostname evil",
        capabilities=("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_MKNOD", "CAP_SYS_ADMIN"),
        user_namespace=True,
        binds=(
            jail.JailBind(source=BUSYBOX, target="/busybox"),
            jail.JailBind(source=tree, target="/tree", writable=True),
        ),
    )
    os.close(tree)
    assert status != 0
    assert text.startswith("secret")
    owner = (tmp_path / "private").stat()
    assert (owner.st_uid, owner.st_gid) == (7, 8)
    assert "mknod: /tree/null: Operation not permitted" in text
    assert not (tmp_path / "null").exists()
    assert "mounting x" in text or "mount:" in text
    assert "sethostname: Operation not permitted" in text


def test_a_mount_made_later_below_a_shared_tree_appears_in_the_jail(tmp_path: Path) -> None:
    script = Path(__file__).parent / "jail_follow.py"
    path = {"PYTHONPATH": os.path.dirname(os.path.dirname(jail.__file__))}
    command = [sys.executable, script, tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=path)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "late\nread-only\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"binds": (jail.JailBind(source="/no/such", target="/x"),)},
            "cannot start test: open /no/such: No such file or directory",
        ),
        ({"binds": ()}, "cannot start test: execute /busybox: No such file or directory"),
        ({"devices": ("nope",)}, "cannot start test: open /dev/nope: No such file or directory"),
        ({"log_fd": 987}, "cannot start test: arrange descriptors: Bad file descriptor"),
        ({"capabilities": ("CAP_NONE",)}, "cannot start test: drop privileges: ValueError: CAP_NONE"),
    ],
)
def test_a_failed_step_is_named_and_leaves_no_process(changes: dict[str, object], message: str) -> None:
    before = children()
    with pytest.raises(HostError) as caught:
        run("true", **changes)
    assert caught.value.message == message
    assert children() <= before


def children() -> set[str]:
    """Our processes, zombies too; other tests may have some that go on."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_low_descriptors_are_not_donated() -> None:
    with pytest.raises(BugError):
        run("true", keep_fds=(1,))


def test_nothing_is_mounted_on_the_host_meanwhile() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    run("true")
    assert Path("/proc/self/mountinfo").read_text() == before


def test_our_own_children_stay_in_our_pid_namespace() -> None:
    before = os.readlink("/proc/self/ns/pid_for_children")
    run("true")
    assert os.readlink("/proc/self/ns/pid_for_children") == before


def test_two_sandboxes_never_share_a_uid_and_a_freed_one_returns(tmp_path: Path) -> None:
    first, second = jail.allocate_uid(str(tmp_path)), jail.allocate_uid(str(tmp_path))
    assert len({first.vmm, first.helper, second.vmm, second.helper}) == 4
    assert min(first.vmm, second.vmm) >= jail.UID_BASE
    first.close()
    first.close()
    with jail.allocate_uid(str(tmp_path)) as third:
        assert third.vmm == first.vmm
    second.close()


def test_a_killed_owner_frees_its_uid(tmp_path: Path) -> None:
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        lease = jail.allocate_uid(str(tmp_path))
        os.write(done, str(lease.vmm).encode())
        signal.pause()
    taken = int(os.read(ready, 20))
    with jail.allocate_uid(str(tmp_path)) as other:
        assert other.vmm != taken
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with jail.allocate_uid(str(tmp_path)) as again:
        assert again.vmm == taken
    os.close(ready)
    os.close(done)


def test_the_helper_dies_with_its_parent() -> None:
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        confined = jail.Jail(
            name="sleeper",
            uid=UID,
            gid=UID,
            log_fd=2,
            calls=SHELL,
            binds=(jail.JailBind(source=BUSYBOX, target="/busybox"),),
        )
        child = jail.start(["/busybox", "sleep", "1000"], confined)
        os.write(done, str(child.pid).encode())
        signal.pause()
    helper = os.pidfd_open(int(os.read(ready, 20)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    poller = select.poll()
    poller.register(helper, select.POLLIN)
    assert poller.poll(5000)
    for fd in (helper, ready, done):
        os.close(fd)


def test_without_root_it_works_in_a_user_namespace() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups(())
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        process.set_dumpable(True)  # else /proc/self belongs to root
        try:
            _, text = run("/busybox ls /; /busybox id -u; /busybox id -g", uid=65534, gid=65534)
        except HostError as error:
            text = error.message
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    if "create a user namespace" in text:
        pytest.skip("needs unprivileged user namespaces")
    assert text.split() == ["busybox", "dev", "65534", "65534"]


def ended_for_a_call() -> str:
    """What is told of a helper that made a forbidden call."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    confined = jail.Jail(
        name="test",
        uid=UID,
        gid=UID,
        log_fd=writer,
        calls=SHELL,
        binds=(jail.JailBind(source=BUSYBOX, target="/busybox"),),
    )
    with jail.start(["/busybox", "swapoff", "/dev/null"], confined) as child:
        assert child.wait_exit(10) == -signal.SIGSYS
    for fd in (reader, writer):
        os.close(fd)
    return child.denied


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="needs the kernel's log")
def test_a_helper_that_is_killed_for_a_call_says_which() -> None:
    end = time.monotonic() + 60
    while not (told := ended_for_a_call()):  # the kernel's log takes ten such lines in five seconds
        assert time.monotonic() < end
    assert told == "the system call swapoff is not on its list: src/bufferzone/allowlists.py"


def test_the_status_of_a_helper_is_told_once_and_again() -> None:
    status, _ = run("exit 7")
    assert status == 7
    child = spawn.start("sleeper", [BUSYBOX, "sleep", "100"], lambda talk: None)
    assert child.wait_exit(0) is None
    child.kill()
    assert child.wait_exit(5) == -9
    assert child.wait_exit(5) == -9
    child.close()
    child.close()


def test_a_step_that_raises_is_reported_by_number() -> None:
    def enter(talk: spawn.Conversation) -> None:
        talk.step = "try"
        raise OSError(errno.ENOSPC, "x")

    with pytest.raises(HostError, match="cannot start it: try: No space left on device"):
        spawn.start("it", [BUSYBOX, "true"], enter)
