"""Odd surroundings: closed descriptors, few descriptors, nobody reading, long names, two callers at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bufferzone.storage import virtiofs
from vm.leftovers import Watch
from vm.verbs import Runtime, bundle, config, kill, write_config

pytestmark = pytest.mark.vm

FLOOD = "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done"
#: put in front of a command, each with the change it makes to the process first
CHANGED = {
    "umask": "os.umask(0o077)",
    "cwd": "d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "environment": "os.environ.clear()",
    "descriptors": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, FEWEST))",
}


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "root")
    yield runtime
    runtime.close()


@pytest.fixture
def watch(runtime: Runtime) -> Watch:
    return Watch(runtime.root)


def after(change: str) -> tuple[str, ...]:
    code = f"import os, resource, sys, tempfile; {change}; os.execv(sys.argv[1], sys.argv[1:])"
    return (sys.executable, "-c", code)


def run_to_files(runtime: Runtime, directory: Path, *words: str) -> tuple[int, str, str]:
    """A verb whose output goes to files: what it leaves running may keep them."""
    out, err = directory / "out", directory / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        done = subprocess.run(
            runtime.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            timeout=180,
            check=False,
        )
    return done.returncode, out.read_text(), err.read_text()


def whole_life(runtime: Runtime, directory: Path, id: str = "c") -> None:
    container = runtime.run(id, directory)
    container.expect("hi")
    assert runtime.ok("exec", id, "echo", "x").out == "x\n"
    runtime.ok("kill", id, "KILL")
    assert container.wait() == 137
    runtime.ok("delete", id)


@pytest.mark.parametrize("fds", ["0", "1", "2", "012"])
def test_closed_standard_descriptors_are_dev_null(
    fds: str, runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    runtime.before = after("; ".join(f"os.close({fd})" for fd in fds))
    out, err = "" if "1" in fds else "hi\n", "" if "2" in fds else "err\n"
    made = bundle(tmp_path / "bundle", "echo hi; echo err >&2; cat; exit 7")
    assert run_to_files(runtime, tmp_path, "run", "-b", str(made), "c") == (7, out, err)
    pid_file = tmp_path / "pid"
    words = ("create", "-b", str(made), "--pid-file", str(pid_file), "c")
    assert run_to_files(runtime, tmp_path, *words)[0] == 0
    assert run_to_files(runtime, tmp_path, "start", "c")[0] == 0
    assert os.waitstatus_to_exitcode(os.waitpid(int(pid_file.read_text()), 0)[1]) == 7
    assert run_to_files(runtime, tmp_path, "delete", "c")[0] == 0
    watch.assert_nothing_left()


@pytest.mark.parametrize("what", CHANGED)
def test_the_callers_state_does_not_matter(what: str, runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    fewest = 64 if virtiofs.find_program().kind == "c" else 1024  # the Rust one wants 610 descriptors
    runtime.before = after(CHANGED[what].replace("FEWEST", str(fewest)))
    whole_life(runtime, bundle(tmp_path / "bundle", "echo hi; exec sleep 1000"))
    watch.assert_nothing_left()


def test_a_soft_limit_of_64_descriptors_does_not_limit_execs(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    hard = "resource.getrlimit(resource.RLIMIT_NOFILE)[1]"
    runtime.before = after(f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))")
    runtime.run("c", bundle(tmp_path / "bundle", "echo hi; exec sleep 1000"))
    words = runtime.command("exec", "c", "sleep", "3")
    verbs = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(12)]
    assert [verb.wait(90) for verb in verbs] == [0] * len(verbs)
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


@pytest.mark.parametrize("victim", ["shim", "virtiofsd", "qemu"])
def test_an_end_is_told_although_nobody_reads(
    victim: str, runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    container = runtime.run("c", bundle(tmp_path / "bundle", FLOOD))
    container.expect("yyy")
    kill(runtime.helper_pids("c")[victim])
    assert runtime.await_status("c", "stopped", 10)["pid"] == 0
    assert container.wait(10) == 137
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


def test_kill_ends_a_container_that_nobody_reads(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    container = runtime.run("c", bundle(tmp_path / "bundle", FLOOD))
    container.expect("yyy")
    runtime.ok("kill", "c", "KILL")
    assert container.wait(15) == 137
    runtime.ok("delete", "c")
    watch.assert_nothing_left()


def test_stdin_that_never_ends_holds_no_end_back(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle", "head -c 1000000 > /dev/null; exit 5")
    write_config(made, {**config("head -c 1000 > /tmp/x; exit 5")})
    with open("/dev/zero", "rb") as endless:
        words = runtime.command("run", "-b", str(made), "c")
        assert subprocess.run(words, stdin=endless, timeout=180, check=False).returncode == 5
    watch.assert_nothing_left()


def test_sockets_serve_as_stdio(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle", "cat; echo end; exit 3")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            words = runtime.command("run", "-b", str(made), "c")
            verb = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
        ours.sendall(b"hello\n")
        ours.shutdown(socket.SHUT_WR)
        assert verb.wait(60) == 3
        with ours.makefile("rb") as file:
            assert file.read() == b"hello\nend\n"
    watch.assert_nothing_left()


@pytest.mark.parametrize("flags", [(), ("--force",)], ids=["plain", "force"])
def test_of_deletes_at_once_one_removes_and_the_others_find_nothing(
    flags: tuple[str, ...], runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    container = runtime.run("c", bundle(tmp_path / "bundle"))
    runtime.ok("kill", "c", "KILL")
    container.wait()
    words = runtime.command("delete", *flags, "c")
    verbs = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)]
    ends = sorted((verb.wait(60), verb.communicate()[1]) for verb in verbs)
    late = (0, b"") if flags else (1, b'bufferzone: container "c" does not exist\n')
    assert ends == [(0, b""), late, late, late]
    watch.assert_nothing_left()


def test_of_creates_at_once_one_wins(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle")
    tries = [runtime.begin_create("c", made) for _ in range(3)]
    ends = [(verb.wait(120), container) for verb, container in tries]
    lost = [container.errors() for status, container in ends if status]
    assert lost == ["bufferzone: container with id exists: c\n"] * 2
    assert runtime.status("c") == "created"
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()


@pytest.mark.parametrize(
    "part", ["x" * 200, "/".join(["y" * 200] * 6), "a b", "\u00e4\u2603", "a\nb", "a\tb\\040"]
)
def test_paths_may_be_long_and_odd(part: str, runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    (tmp_path / part).mkdir(parents=True)
    runtime.root = tmp_path / part / "root"
    made = bundle(tmp_path / part / "bundle", "echo hi; exec sleep 1000")
    value = json.loads((made / "config.json").read_text())
    value["mounts"].append(
        {"destination": "/v", "type": "bind", "source": str(tmp_path / part), "options": ["rbind"]}
    )
    write_config(made, value)
    whole_life(runtime, made)
    assert [path.name for path in runtime.root.iterdir()] == ["kvm-probe.json"]


def test_an_id_may_have_255_characters(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    made = bundle(tmp_path / "bundle", "exec sleep 1000")
    id = "i" * 255
    verb, _ = runtime.begin_create(id, made, "--pid-file", str(pid_file))
    assert verb.wait(120) == 0
    runtime.ok("start", id)
    assert runtime.ok("exec", id, "echo", "x").out == "x\n"
    runtime.ok("delete", "--force", id)
    watch.assert_nothing_left()


def processed(directory: Path, **keys: Any) -> Path:
    value = config("echo hi; exec sleep 1000")
    value["process"].update(keys)
    made = bundle(directory)
    write_config(made, value)
    return made


def test_an_environment_may_be_as_large_as_execve_takes(
    runtime: Runtime, watch: Watch, tmp_path: Path
) -> None:
    many = [f"E{number}=" + "x" * 500 for number in range(2000)]
    longest = "B=" + "x" * (131072 - 3)  # MAX_ARG_STRLEN with the NUL
    whole_life(runtime, processed(tmp_path / "fits", env=["PATH=/bin", *many, longest]))
    runtime.create("c", processed(tmp_path / "long", env=["PATH=/bin", longest + "x"]))
    assert runtime.verb("start", "c").line == 'bufferzone: exec: "/bin/sh": argument list too long'
    runtime.ok("delete", "c")
    huge = processed(tmp_path / "huge", env=[f"E{number}=" + "x" * 120000 for number in range(40)])
    line = runtime.try_create("c", huge).line
    assert line.startswith("bufferzone: config.json: too large for one message to the guest: ")
    watch.assert_nothing_left()


def test_arguments_may_be_any_bytes(runtime: Runtime, watch: Watch, tmp_path: Path) -> None:
    runtime.run("c", bundle(tmp_path / "bundle", "exec sleep 1000"))
    words = [os.fsencode(word) for word in runtime.command("exec", "c", "printf", "%s")]
    done = subprocess.run([*words, b"\xff\xfe\xc3\xa4"], capture_output=True, timeout=180, check=True)
    assert done.stdout == b"\xff\xfe\xc3\xa4"
    runtime.ok("delete", "--force", "c")
    watch.assert_nothing_left()
