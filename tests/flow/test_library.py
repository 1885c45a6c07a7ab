"""The Python library with the real shim and agent: programs, limits, ends, files, and what is left."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import bufferzone
from bufferzone import state
from bufferzone.workload import launch, place
from flow.cli import DEADLINE_S, ROOT, Cli, needs_host

pytestmark = needs_host


class World:
    """A state root and a store of our own, in which `sandbox` starts one."""

    def __init__(self, base: Path) -> None:
        self.cli = Cli(base)
        self.cli.enter_in_shim()
        self.root, self.store = str(self.cli.root), base / "sandboxes"
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(place, "parent", lambda: str(self.store))
        self._patch.setattr(launch, "Launch", functools.partial(launch.Launch, shim=self.cli.shim))

    def sandbox(self, *args, **more) -> bufferzone.Sandbox:
        return bufferzone.Sandbox(*args, root=self.root, **more)

    def attach(self, name: str) -> bufferzone.Sandbox:
        return bufferzone.Sandbox.attach(name, root=self.root)

    def left(self) -> list[str]:
        """Containers and places."""
        return [name for name in self.cli.left() if not name.startswith("kvm")] + os.listdir(self.store)

    def program(self, source: str) -> subprocess.Popen[str]:
        """Another Python program with the same world; `sandbox()` in it is ours."""
        head = f"""
            import functools, sys
            sys.path.insert(0, {str(ROOT / "src")!r})
            import bufferzone
            from bufferzone.workload import launch, place
            place.parent = lambda: {str(self.store)!r}
            launch.Launch = functools.partial(launch.Launch, shim={self.cli.shim!r})
            sandbox = functools.partial(bufferzone.Sandbox, root={self.root!r})
        """
        words = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(source)]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        self._patch.undo()
        self.cli.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("library"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def box(world):
    """One sandbox for the tests that change nothing of it."""
    with world.sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def alone(tmp_path):
    """A world of the test's own, in which nothing may be left."""
    world = World(tmp_path)
    yield world
    left = world.left()
    world.close()
    assert left == []


def sh(box, script, **more):
    return box.run(["sh", "-c", script], **more)


def test_a_program_that_fails_is_a_result(box):
    done = sh(box, "echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code, done.signal) == ("out\n", "err\n", 3, 0)
    assert (done.verdict, done.ok) == ("nonzero", False)
    assert box.run(["true"]).verdict == "ok"
    with pytest.raises(AttributeError, match="frozen"):
        done.exit_code = 0


def test_a_program_that_a_signal_ended_says_which(box):
    done = sh(box, "kill -SEGV $$")
    assert (done.exit_code, done.signal, done.verdict) == (139, 11, "signal")
    assert sh(box, "exit 139").verdict == "nonzero"


def test_it_is_told_what_a_program_used(box):
    done = box.run(["sh", "-c", "sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; exit 0"])
    assert done.cpu_s > 0.01
    assert 0 < done.wall_s <= done.timings.total_s
    assert done.timings.start_s > 0


def test_what_it_reads_is_text_bytes_or_a_file(box, tmp_path):
    (tmp_path / "f").write_text("of a file")
    assert box.run(["cat"], stdin="text").stdout == "text"
    assert box.run(["cat"], stdin=b"\xff").stdout_bytes == b"\xff"
    with open(tmp_path / "f", "rb") as file:
        assert box.run(["cat"], stdin=file).stdout == "of a file"
    assert box.run(["cat"]).stdout == ""
    with pytest.raises(bufferzone.UsageError, match="stdin"):
        box.run(["cat"], stdin=io.BytesIO())


def test_much_goes_in_and_comes_out(box):
    data = os.urandom(1 << 20) * 3
    assert box.run(["cat"], stdin=data).stdout_bytes == data
    assert box.run(["true"], stdin=data).ok  # who does not read does not hold up


def test_user_directory_and_environment_are_what_the_call_says(box):
    script = "id -u; id -g; pwd; echo $A $HOME; grep CapEff /proc/self/status"
    lines = sh(box, script, user="nobody", cwd="/srv", env={"A": "b c"}).stdout.splitlines()
    assert lines[:4] == ["65534", "65534", "/srv", "b c /nonexistent"]
    assert int(lines[4].split()[1], 16) == 0
    assert sh(box, "id -u; echo $A").stdout == "0\n\n"


@pytest.mark.parametrize("script", ["sleep 1000", "trap '' TERM INT; while :; do sleep 0.1; done"])
def test_a_program_whose_time_is_up_is_killed_with_all_it_started(box, script):
    done = sh(box, f"sleep 1000 & echo $!; {script}", timeout_s=0.5)
    assert (done.verdict, done.signal) == ("timeout", signal.SIGKILL)
    assert sh(box, f"kill -0 {done.stdout}").exit_code == 1


def test_a_program_whose_time_is_up_before_it_began_is_a_result_too(box):
    """At each moment of its making: the kill may come before there is a process, and while it is made."""
    for microseconds in [*range(0, 20_000, 250), *[0] * 20]:
        done = sh(box, "exit 1", timeout_s=microseconds / 1e6)
        assert (done.verdict, done.signal, done.exit_code) in [("timeout", 9, 137), ("nonzero", 0, 1)]


def test_a_limit_of_cpu_time_counts_what_it_started_too(box):
    done = sh(box, "sh -c 'while :; do :; done'; true", cpu_time_s=0.2)
    assert done.verdict == "cpu-limit"
    assert done.cpu_s >= 0.2
    assert sh(box, "sleep 0.3", cpu_time_s=0.2).ok


def test_output_without_end_is_cut_and_its_writer_killed(box):
    done = sh(box, "yes", output_limit=1000)
    assert (done.verdict, len(done.stdout)) == ("output-limit", 1000)
    both = sh(box, "printf 12345; printf 12345 >&2", output_limit=10)
    assert (both.ok, both.stdout, both.stderr) == (True, "12345", "12345")


def test_what_a_program_leaves_behind_lives_on(box):
    pid = sh(box, "sleep 1000 & echo $!").stdout.strip()
    assert sh(box, f"kill {pid}").ok


@pytest.mark.parametrize(
    ("args", "more", "error"),
    [
        (["no-such-program"], {}, bufferzone.ExecError),
        (["/etc/passwd"], {}, bufferzone.ExecError),
        ("true", {}, bufferzone.UsageError),
        ([], {}, bufferzone.SpecError),
        (["true"], {"user": "ghost"}, bufferzone.UsageError),
        (["true"], {"cwd": "relative"}, bufferzone.SpecError),
        (["true"], {"cwd": "/no/such"}, bufferzone.GuestError),
    ],
)
def test_what_cannot_be_run_is_an_exception(box, args, more, error):
    with pytest.raises(error):
        box.run(args, **more)
    assert box.run(["true"]).ok


def test_a_started_program_has_streams_and_takes_signals(box):
    script = "trap 'echo usr1' USR1; echo up; read line; echo got $line; while :; do sleep 0.05; done"
    with box.start(["sh", "-c", script]) as process:
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.write(b"this\n")
        assert process.stdout.readline() == b"got this\n"
        process.signal("USR1")
        assert process.stdout.readline() == b"usr1\n"
        process.kill()
        assert process.wait().signal == signal.SIGKILL
        assert process.stdout.read() == b""


def test_a_started_program_that_is_closed_is_gone_with_all_it_started(box):
    with box.start(["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"]) as process:
        pid = process.stdout.readline().decode().strip()
        assert sh(box, f"kill -0 {pid}").ok
    watch = f"while kill -0 {pid} 2>/dev/null; do sleep 0.05; done"
    assert sh(box, watch, timeout_s=DEADLINE_S).ok


def test_with_a_terminal_it_has_one_of_the_size_asked_for(box):
    script = "stty size; read x; stty size"
    with box.start(["sh", "-c", script], pty=(100, 40)) as process:
        assert process.stdout.readline() == b"40 100\r\n"
        process.resize(90, 30)
        process.stdin.write(b"\n")
        assert process.stdout.readline() == b"\r\n"
        assert process.stdout.readline() == b"30 90\r\n"
        assert process.wait(DEADLINE_S).ok
        assert process.stderr is None


def test_files_are_written_read_listed_and_removed(box):
    files = box.files
    files.write("/tmp/new/deep/file", "text", mode=0o600)
    files.write("/tmp/new/deep/file", b"\xff", append=True)
    assert files.read("/tmp/new/deep/file") == b"text\xff"
    assert files.read("/tmp/new/deep/file", offset=1, size=2) == b"ex"
    found = files.stat("/tmp/new/deep/file")
    assert (found.name, found.kind, found.size, found.mode, found.uid) == ("file", "file", 5, 0o600, 0)
    sh(box, "ln -s deep /tmp/new/link; mkfifo /tmp/new/fifo")
    kinds = [(info.name, info.kind, info.target) for info in files.list("/tmp/new")]
    assert kinds == [("deep", "directory", ""), ("fifo", "other", ""), ("link", "link", "deep")]
    assert files.stat("/tmp/new/link").kind == "directory"
    files.mkdir("/tmp/new/a/b")
    with pytest.raises(bufferzone.FileError) as caught:
        files.remove("/tmp/new")
    assert caught.value.code == "not-empty"
    files.remove("/tmp/new", recursive=True)
    assert not files.exists("/tmp/new")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_has_bytes_is_written_whole(box, kind):
    box.files.write("/tmp/whole", kind(b"all of it"))
    assert box.files.read("/tmp/whole") == b"all of it"


@pytest.mark.parametrize("wrong", [0, 7, None, ["text"]])
def test_what_is_neither_text_nor_bytes_is_refused_and_nothing_written(box, wrong):
    with pytest.raises(bufferzone.UsageError, match="data: expected text or bytes"):
        box.files.write("/tmp/wrong", wrong)
    assert not box.files.exists("/tmp/wrong")


@pytest.mark.parametrize(
    ("operation", "code", "says"),
    [
        (lambda files: files.read("/no/such"), "no-such-file", "cannot read '/no/such' in"),
        (lambda files: files.read("/etc"), "is-a-directory", "cannot read '/etc' in"),
        (lambda files: files.list("/etc/passwd"), "not-a-directory", "cannot list '/etc/passwd' in"),
        (lambda files: files.stat("/no/such"), "no-such-file", "cannot look at '/no/such' in"),
        (lambda files: files.write("/proc/1/x", "y"), "no-such-file", "cannot write '/proc/1/x' in"),
        (lambda files: files.write("/sys/x", "y"), "read-only", "cannot write '/sys/x' in"),
        (lambda files: files.mkdir("/sys/x"), "read-only", "cannot make the directory '/sys/x' in"),
        (lambda files: files.remove("/no/such"), "no-such-file", "cannot remove '/no/such' in"),
        (lambda files: files.copy_out("/no/such", "/x"), "no-such-file", "cannot copy '/no/such' out of"),
        (lambda files: files.copy_in("/etc/hostname", "/sys/x"), "read-only", "cannot copy to '/sys/x' in"),
        (lambda files: files.watch("/no/such"), "no-such-file", "cannot watch '/no/such' in"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_exception_with_its_reason(box, operation, code, says):
    with pytest.raises(bufferzone.FileError) as caught:
        operation(box.files)
    assert caught.value.code == code
    reason = os.strerror(caught.value.errno).lower()
    assert caught.value.message == f"{says} {box.name}: {reason}"


def test_a_path_that_leaves_the_sandbox_is_one_in_the_sandbox(box, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    with pytest.raises(bufferzone.FileError):
        box.files.read(f"/../../../../..{outside}")
    sh(box, f"ln -s {outside} /tmp/leads-out")
    with pytest.raises(bufferzone.FileError):
        box.files.read("/tmp/leads-out")
    box.files.write("/../../etc/was-here", "x")
    assert not os.path.exists("/etc/was-here")
    assert box.files.read_text("/etc/was-here") == "x"


def test_a_device_or_fifo_is_not_read(box):
    sh(box, "mkfifo /tmp/fifo")
    for path in ("/dev/zero", "/tmp/fifo"):
        with pytest.raises(bufferzone.FileError):
            box.files.read(path)


def test_trees_are_copied_in_and_out(box, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "below").mkdir(parents=True)
    (source / "below/big").write_bytes(os.urandom(700_000))
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("below/big")
    box.files.copy_in(source, "/tmp/tree")
    assert box.run(["/tmp/tree/run.sh"]).stdout == "ran\n"
    box.files.copy_out("/tmp/tree", target)
    assert (target / "below/big").read_bytes() == (source / "below/big").read_bytes()
    assert os.readlink(target / "link") == "below/big"
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
    box.files.copy_in(source / "run.sh", "/tmp/one.sh")
    box.files.copy_out("/tmp/one.sh", tmp_path / "one.sh")
    assert (tmp_path / "one.sh").read_text() == "#!/bin/sh\necho ran\n"


def test_a_link_that_leads_out_is_not_made_on_the_host(box, tmp_path):
    sh(box, "mkdir /tmp/evil; ln -s /etc /tmp/evil/abs")
    with pytest.raises(bufferzone.GuestError) as caught:
        box.files.copy_out("/tmp/evil", tmp_path / "evil")
    assert caught.value.code == "unsafe-link"
    assert os.listdir(tmp_path / "evil") == []


def test_changes_of_a_directory_are_told(box):
    box.files.mkdir("/tmp/watched")
    changes = box.files.watch("/tmp/watched")
    box.files.write("/tmp/watched/one", "x", append=True)
    seen = [next(changes) for _ in range(2)]
    assert [(change.kind, change.name) for change in seen] == [("made", "one"), ("written", "one")]
    changes.close()


def test_a_full_disk_is_an_exception_and_the_old_file_stays(world):
    with world.sandbox() as box:
        box.files.write("/dev/shm/kept", "old")
        sh(box, "dd if=/dev/zero of=/dev/shm/fill bs=1M 2>/dev/null")
        with pytest.raises(bufferzone.FileError) as caught:
            box.files.write("/dev/shm/kept", b"x" * (1 << 20))
        assert caught.value.code == "no-space"
        assert box.files.read("/dev/shm/kept") == b"old"
        assert [info.name for info in box.files.list("/dev/shm")] == ["fill", "kept"]


def test_one_sandbox_is_seen_by_all_faces(world, box):
    assert box.name in [info.name for info in bufferzone.Sandbox.list(root=world.root)]
    assert box.name in world.cli("list").stdout
    assert box.name in world.cli.bz("ps").stdout
    assert world.cli("exec", box.name, "echo", "inside").stdout == "inside\n"
    assert (box.status, box.info().status) == ("running", "running")


def test_what_others_started_can_be_attached_to(world):
    world.cli.create("theirs", world.cli.bundle("pause"))
    world.cli("start", "theirs")
    with world.attach("theirs") as box:
        assert box.run(["echo", "hello"]).stdout == "hello\n"
        box.files.write("/dev/shm/x", "y")
    assert world.cli.state("theirs")["status"] == "running"
    world.attach("theirs").remove()
    with pytest.raises(bufferzone.NotFoundError):
        world.attach("theirs")


def test_paused_it_runs_nothing_until_it_is_resumed(world):
    with world.sandbox() as box:
        box.pause()
        assert box.status == "paused"
        with pytest.raises(bufferzone.StateError):
            box.run(["true"])
        box.resume()
        assert box.run(["true"]).ok


def test_two_of_one_name_are_one_and_an_exception(alone):
    with alone.sandbox(name="one") as box:
        with pytest.raises(bufferzone.ExistsError):
            alone.sandbox(name="one")
        assert box.run(["true"]).ok


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"image": "no-such-image"}, bufferzone.CallerError),
        ({"network": "magic"}, bufferzone.UsageError),
        ({"volumes": {"/no/such": "/x"}}, bufferzone.CallerError),
        ({"volumes": {"/tmp": "relative"}}, bufferzone.UsageError),
        ({"ports": {80: 80}}, bufferzone.UsageError),
        ({"memory_mib": -1}, bufferzone.UsageError),
        ({"user": "ghost"}, bufferzone.UsageError),
        ({"name": "no/name"}, bufferzone.UsageError),
        ({"detached": True, "timeout_s": 1}, bufferzone.UsageError),
        ({"command": ["no-such-program"]}, bufferzone.ExecError),
    ],
)
def test_a_sandbox_that_cannot_be_is_an_exception_and_leaves_nothing(alone, more, error):
    alone.store.mkdir()
    with pytest.raises(error):
        alone.sandbox(**more)


def test_a_command_of_its_own_is_waited_for_and_has_logs(alone):
    with alone.sandbox(command=["sh", "-c", "echo up; echo bad >&2; exit 4"]) as box:
        assert box.wait() == 4
        assert box.logs() == "up\nbad\n"


def test_its_time_limit_ends_a_sandbox(alone):
    with alone.sandbox(timeout_s=0.2) as box:
        assert box.wait() == 137
        with pytest.raises(bufferzone.StateError) as caught:
            box.run(["true"])
        assert caught.value.code == "sandbox-ended"


def test_one_that_was_removed_by_somebody_else_says_so(alone):
    with alone.sandbox() as box:
        alone.cli("delete", "--force", box.name)
        with pytest.raises(bufferzone.StateError) as caught:
            box.run(["true"])
        assert caught.value.code == "sandbox-ended"


def test_a_detached_one_goes_on_without_its_program(alone):
    program = alone.program("""
        with sandbox(detached=True) as box:
            print(box.name)
    """)
    name = program.communicate(timeout=DEADLINE_S)[0].strip()
    with alone.attach(name) as box:
        assert box.run(["true"]).ok
    alone.attach(name).remove()


def test_a_program_that_ends_in_order_leaves_nothing(alone):
    program = alone.program("sandbox(); print('made')")
    assert program.communicate(timeout=DEADLINE_S)[0] == "made\n"


def test_a_killed_program_leaves_no_sandbox(alone):
    program = alone.program("""
        box = sandbox(name="orphan")
        print("made", flush=True)
        sys.stdin.read()
    """)
    assert program.stdout.readline() == "made\n"
    shim = os.pidfd_open(state.owner_pid(os.path.join(alone.root, "orphan")))
    program.kill()
    program.communicate()
    ended(shim)
    alone.sandbox().close()  # the next one tidies


def ended(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], DEADLINE_S)[0], "it lives"
    os.close(pidfd)


def test_the_child_of_a_fork_may_use_it_and_does_not_keep_it(alone):
    program = alone.program("""
        import os, signal
        box = sandbox(name="forked")
        box.run(["true"])
        pid = os.fork()
        if pid == 0:
            print(box.run(["echo", "child"]).stdout, flush=True)
            box.close()
            sys.stdin.read()  # outlives its parent
            os._exit(0)
        box.run(["true"])
        sys.stdin.read()
    """)
    assert program.stdout.readline() == "child\n"
    shim = os.pidfd_open(state.owner_pid(os.path.join(alone.root, "forked")))
    program.kill()
    ended(shim)
    program.communicate(timeout=DEADLINE_S)
    alone.sandbox().close()


def test_threads_share_a_sandbox(box):
    results, failures = {}, []

    def work(number):
        try:
            for turn in range(3):
                results[number, turn] = box.run(["echo", f"{number} {turn}"]).stdout
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert results == {(n, t): f"{n} {t}\n" for n in range(20) for t in range(3)}


def test_a_run_that_is_given_up_ends(box):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            sh(box, "echo $$ >/tmp/pid; exec sleep 1000")
    finally:
        signal.signal(signal.SIGALRM, before)
    watch = "while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.05; done"
    assert sh(box, watch, timeout_s=DEADLINE_S).ok
