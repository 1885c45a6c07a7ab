"""Secrets of a container and of its caller: no command line, log, state or world-readable file has them.

Through the real verbs, shim and agent. The agent is a process of the host here and what it starts as well, so
that those are left out; `tests/vm/test_secrets.py` has the same with a VM.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from bufferzone import state
from fakes.canaries import Canaries, open_to_others
from flow import cli
from flow.cli import SETTINGS, Cli, needs_host, read
from vm.leftovers import descendants

pytestmark = needs_host


@pytest.fixture
def canaries():
    return Canaries()


@pytest.fixture
def bz(tmp_path):
    made = Cli(tmp_path, f'{SETTINGS}\nimage_store = "{tmp_path}/store/images"')
    yield made
    made.close()


def bundle(bz, canaries, *args, name="bundle"):
    """A bundle that has a secret in its environment, its arguments and a file that is mounted."""
    secret = bz.base / "secret"
    secret.write_text(canaries.mount)
    secret.chmod(0o600)
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/run/secret", "type": "bind", "source": str(secret), "options": ["bind", "ro"]},
    ]
    path = bz.bundle(*args, canaries.args, name=name, mounts=mounts)
    config = path / "config.json"
    config.chmod(0o600)
    value = json.loads(config.read_text())
    value["process"]["env"] = ["PATH=/bin", f"TOKEN={canaries.env}"]
    config.write_text(json.dumps(value))
    return path


def guests(bz):
    """Processes that are the guest's, though they are on the host here."""
    found = set()
    for id in state.list_ids(str(bz.root)):
        agent = bz.helper(id)
        found |= {agent, *descendants(agent)}
    return found


def ours(bz):
    """The shims."""
    return [pid for id in state.list_ids(str(bz.root)) if (pid := state.owner_pid(str(bz.root / id)))]


class Running:
    """A container with all the secrets, whose stdin has one too; it says `up` and waits."""

    def __init__(self, bz, canaries, log):
        self.bz = bz
        script = 'read line; echo "$line" >/tmp/in; cat /run/secret >/tmp/mounted; echo up; exec sleep 1000'
        self.bundle = bundle(bz, canaries, "sh", "-c", script)
        reader, writer = os.pipe()
        out, out_there = os.pipe()
        words = bz.command("--debug", "--log", str(log), "create", "--bundle", str(self.bundle), "one")
        environment = {"PASSWORD": canaries.host}
        assert subprocess.call(words, env=environment, stdin=reader, stdout=out_there, stderr=out_there) == 0
        os.write(writer, f"{canaries.stdin}\n".encode())
        for fd in (reader, writer, out_there):
            os.close(fd)
        self.said = bz("--debug", "--log", str(log), "start", "one", env=environment).stderr
        assert read(out) == b"up\n"
        os.close(out)


def test_nothing_of_a_running_container_is_on_the_host(bz, canaries, tmp_path):
    log = tmp_path / "log"
    running = Running(bz, canaries, log)
    environments = canaries.in_environments(ours(bz))
    assert environments == []
    inside = {line.split()[1] for line in canaries.in_environments(guests(bz))}
    assert inside == {"env"}  # the program's own: what its caller's had is not there
    assert_kept_outside(bz, canaries, running.said, log.read_text())
    asked = [
        bz.bz(*words, check=None)
        for words in (["audit", "--json"], ["audit"], ["ps"], ["stats", "--no-stream"], ["top", "one"])
    ]
    asked += [bz(*words, check=None) for words in (["state", "one"], ["list"], ["events", "--stats", "one"])]
    said = [done.stdout + done.stderr for done in asked if "top" not in done.args]
    assert_kept_outside(bz, canaries, *said)


def assert_kept_outside(bz, canaries, *said):
    """No process but the guest's, no file below the state root, and nothing that was said has one."""
    assert canaries.on_command_lines(guests(bz)) == []
    assert canaries.in_files(bz.root) == {}
    for text in said:
        assert canaries.in_text(text) == []


@pytest.mark.parametrize("program", ["bufferzone", "bz"])
def test_the_environment_of_an_exec_is_on_no_command_line_while_it_runs(bz, canaries, tmp_path, program):
    Running(bz, canaries, tmp_path / "log")
    flags = ["--detach", "--env", f"KEY={canaries.exec}", "-e=OTHER=" + canaries.exec]
    program = cli.PROGRAM if program == "bufferzone" else cli.BZ
    words = bz.command("exec", *flags, "one", "sleep", "1000", program=program)
    with open(tmp_path / "said", "w+b") as said:  # a detached process keeps what it was given
        subprocess.run(words, env={}, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=True)
    assert_kept_outside(bz, canaries, (tmp_path / "said").read_bytes())
    waiters = [
        line for line in _command_lines() if "KEY=" in line and line.endswith("sleep 1000") and "exec" in line
    ]
    assert len(waiters) == 1  # it is still told apart by what it does


def _command_lines():
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found.append(file.read().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found


def test_a_process_from_a_file_leaves_nothing_in_a_log(bz, canaries, tmp_path):
    log = tmp_path / "log"
    Running(bz, canaries, log)
    process = {"args": ["sh", "-c", "exec true", canaries.exec], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    process["env"] = ["PATH=/bin", f"KEY={canaries.exec}"]
    (tmp_path / "process").write_text(json.dumps(process))
    words = ("--debug", "--log", str(log), "exec", "--detach", "--process", str(tmp_path / "process"), "one")
    said = [bz(*words).stderr]
    said += [bz("--debug", "--log", str(log), "exec", "one", "true", canaries.exec).stderr]
    assert_kept_outside(bz, canaries, *said, log.read_text())


@pytest.mark.parametrize("args", [["no-such-program"], ["sh", "-c", "exit 3"]])
def test_a_start_that_fails_tells_nothing(bz, canaries, tmp_path, args):
    log = tmp_path / "log"
    path = bundle(bz, canaries, *args)
    words = bz.command("--debug", "--log", str(log), "run", "--bundle", str(path), "one")
    done = subprocess.run(words, env={"PASSWORD": canaries.host}, capture_output=True, check=False)
    assert done.returncode in (127, 3)
    assert_kept_outside(bz, canaries, done.stdout, done.stderr, log.read_text())


def test_a_bundle_that_is_wrong_is_told_without_its_values(bz, canaries):
    path = bundle(bz, canaries, "true")
    value = json.loads((path / "config.json").read_text())
    value["process"]["env"].append(canaries.env)  # no NAME=VALUE
    value["process"]["args"].append(7)
    (path / "config.json").write_text(json.dumps(value))
    assert_kept_outside(bz, canaries, bz.create("one", path, check=1))


def test_what_bz_run_is_told_lies_where_nobody_else_looks(bz, canaries, tmp_path):
    flags = ["-d", "--name", "one", "--network", "none", "-e", f"TOKEN={canaries.env}", "-e", "PASSWORD"]
    done = bz.bz(
        "run", *flags, "--", "sleep", "1000", env={"PASSWORD": canaries.host, "UNTOLD": canaries.exec}
    )
    assert_kept_outside(bz, canaries, done.stdout, done.stderr)
    found = canaries.in_files(tmp_path / "store")
    assert {kind for kinds in found.values() for kind in kinds} == {"env", "host"}  # config.json
    assert [path for path in found if open_to_others(path, tmp_path / "store")] == []
    assert canaries.in_text(bz.bz("logs", "one").stdout) == []
    inside = {line.split()[1] for line in canaries.in_environments(guests(bz))}
    assert inside == {"env", "host"}  # what was asked for, and nothing more
    bz.bz("rm", "-f", "one")
    assert canaries.in_files(tmp_path / "store") == {}


def test_doctor_hands_nothing_of_its_environment_on(bz, canaries):
    done = bz.bz("doctor", "--json", check=None, env={"PASSWORD": canaries.host})
    assert canaries.in_text(done.stdout + done.stderr) == []


@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices")
def test_a_checkpoint_that_has_them_is_nobody_elses(bz, canaries, tmp_path):
    path = bundle(bz, canaries, "sh", "-c", "echo up; exec sleep 1000")
    value = json.loads((path / "config.json").read_text())
    value["mounts"] = value["mounts"][:1]
    value["annotations"] = {"bufferzone.rootfs": "block"}
    value["root"]["readonly"] = False
    (path / "config.json").write_text(json.dumps(value))
    bz.create("one", path, out=str(tmp_path / "out"))
    bz("start", "one")
    bz("exec", "one", "sh", "-c", f"echo {canaries.stdin} >/kept")
    done = bz("checkpoint", "--leave-running", "--image-path", str(tmp_path / "saved"), "one")
    assert_kept_outside(bz, canaries, done.stdout, done.stderr)
    for each in (tmp_path / "saved").rglob("*"):
        assert each.stat().st_mode & 0o077 == 0, each
    assert (tmp_path / "saved").stat().st_mode & 0o077 == 0
    assert "env" not in canaries.in_text((tmp_path / "saved" / "manifest.json").read_bytes())
