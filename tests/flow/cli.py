"""Runs the verbs as real programs: the real shim, the real agent, which the VMM `host` runs without a VM.

Each test has a state root of its own. The settings are shown in a mount namespace of their own, so that the
host's are as they were. Needs root, a writable cgroup v2 mount and busybox-static.
"""

from __future__ import annotations

import atexit
import copy
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bufferzone import state
from bufferzone.cli.oci.spec import default_spec
from bufferzone.vmm.host import cgroup
from unit.guest_harness import BUSYBOX
from vm import private

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(ROOT / "bin" / "bufferzone")
BZ = str(ROOT / "bin" / "bz")
FAKE_CONMON = str(ROOT / "tests" / "fakes" / "fake_conmon.py")
DEADLINE_S = 120
SETTINGS = 'vmm = "host"'

needs_host = pytest.mark.skipif(
    os.geteuid() != 0 or not cgroup.unified() or not os.path.exists(BUSYBOX) or not shutil.which("nsenter"),
    reason="needs root, a writable cgroup v2 mount, busybox-static and nsenter",
)
#: what a bundle's program is called here, and what it runs
_SCRIPTS = {
    "pause": "exec sleep 1000",
    "end": "exit $1",
    "count": (
        "n=$(cat /count 2>/dev/null); "
        "while :; do n=$((n + 1)); echo $n; echo $n >/next; mv /next /count; sleep 0.01; done"
    ),
    "greet": "trap 'echo usr1' USR1; trap 'exit 130' INT; echo up; while :; do sleep 0.05; done",
    "size": (
        'last=; while :; do now=$(stty size 2>/dev/null); [ "$now" = "$last" ] || echo "$now"; last=$now; '
        "sleep 0.05; done"
    ),
}
#: a shim in which something is not as it is
_ODD_SHIM = """\
import sys

sys.path.insert(0, {source!r})
from bufferzone.shim.__main__ import main

exec({change!r})
sys.exit(main(sys.argv[1:]))
"""
_namespaces: dict[str, int] = {}


def vm_cgroups(shim: int) -> list[str]:
    """Those of the VMs of the shim with this pid."""
    root = cgroup.unified()
    return [f"{root}/{name}" for name in os.listdir(root) if name.startswith(f"bufferzone-host-{shim}-")]


def _namespace(settings: str) -> str:
    """A mount namespace in which these settings are the machine's, for as long as the tests run."""
    if settings not in _namespaces:
        directory = Path(os.environ.get("PYTEST_TMPDIR", "/tmp"))
        path = directory / f"bz-settings-{os.getpid()}-{len(_namespaces)}"
        path.write_text(f"{settings}\n")
        command = [*private.words(settings=str(path)), "/bin/sh", "-c", "echo ready; exec sleep infinity"]
        reader, writer = os.pipe()
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
        os.close(writer)
        atexit.register(os.kill, pid, signal.SIGKILL)
        assert read(reader) == b"ready\n"
        os.close(reader)
        path.unlink()
        _namespaces[settings] = pid
    return f"/proc/{_namespaces[settings]}/ns/mnt"


class Cli:
    """A state root, bundles, and a way to run verbs; `close` kills every shim that a test left."""

    def __init__(self, base: Path, settings: str = SETTINGS) -> None:
        self.base = base
        self.root = base / "root"
        self.root.mkdir(mode=0o700)
        self.shim = ""
        self._enter = ["nsenter", f"--mount={_namespace(settings)}", "--"]
        self._running: list[subprocess.Popen[str]] = []

    def odd_shim(self, change: str) -> None:
        """From now on this is done in a shim before it begins."""
        path = self.base / "shim.py"
        path.write_text(_ODD_SHIM.format(source=str(ROOT / "src"), change=change))
        self.shim = str(path)

    def enter_in_shim(self) -> None:
        """From now on a shim enters the verbs' mount namespace itself: for callers that are not in it."""
        namespace = self._enter[1].partition("=")[2]
        self.odd_shim(
            "import os\nfrom bufferzone.linux import process\n"
            f"process.setns(os.open({namespace!r}, os.O_RDONLY | os.O_CLOEXEC), process.CLONE_NEWNS)"
        )

    def odd_agent(self, program: str) -> None:
        """From now on the agent of a new VM is this Python program; `agent_fd` is the channel it has.

        What the command line of the agent is follows in its sys.argv.
        """
        head = "import sys; agent_fd = int(sys.argv[sys.argv.index('--fd') + 1])\n"
        self.odd_shim(f"from bufferzone.vmm.host import driver\ndriver._PROGRAM = {head + program!r}")

    def command(self, *words: str, program: str = PROGRAM) -> list[str]:
        shim = ["--shim", self.shim] if self.shim else []
        return [*self._enter, program, "--root", str(self.root), *shim, *words]

    def bz(self, *words: str, **more) -> subprocess.CompletedProcess[str]:
        """The same for `bz`."""
        return self(*words, program=BZ, **more)

    def host(self, *words: str) -> str:
        """Run a program of the host where the verbs run, in their mount namespace; its output."""
        done = subprocess.run(
            [*self._enter, *words], capture_output=True, text=True, check=True, timeout=DEADLINE_S
        )
        return done.stdout

    def start_bz(self, *words: str) -> subprocess.Popen[str]:
        """The same for `bz`."""
        return self.start(*words, program=BZ)

    def start(self, *words: str, program: str = PROGRAM) -> subprocess.Popen[str]:
        """Begin a verb whose stdout and stderr are read at its end; it is killed with the test."""
        process = subprocess.Popen(
            self.command(*words, program=program),
            env={},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._running.append(process)
        return process

    def __call__(
        self, *words: str, check: int | None = 0, program: str = PROGRAM, **more
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb in an empty environment, or `env`; its exit status is `check` unless that is None."""
        more.setdefault("stdin", subprocess.DEVNULL if "input" not in more else None)
        if more["stdin"] is None:
            del more["stdin"]
        done = subprocess.run(
            self.command(*words, program=program),
            env=more.pop("env", {}),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            **more,
        )
        if check is not None:
            assert done.returncode == check, (words, done.returncode, done.stdout, done.stderr)
        return done

    def create(
        self,
        id: str,
        bundle: Path,
        *flags: str,
        verb: str = "create",
        check: int | None = 0,
        out: str = os.devnull,
        env: dict[str, str] | None = None,
    ) -> str:
        """`create`, or another verb that makes a container, with stdio that nobody waits for; returns what it
        wrote to stderr.
        """
        with open(self.base / f"{id[:20]}.err", "w+") as errors, open(out, "ab") as output:
            done = subprocess.run(
                self.command(verb, "--bundle", str(bundle), *flags, id),
                env=env or {},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=DEADLINE_S,
            )
            errors.seek(0)
            text = errors.read()
        if check is not None:
            assert done.returncode == check, text
        return text

    def conmon(
        self, *words: str, outputs: int | None = None, alone: bool = False, **more
    ) -> subprocess.Popen[str]:
        """Run a verb below a subreaper that reports the exit status behind --pid-file.

        `outputs` is what the verb's process has for stdout, None: nothing. `alone`: it waits for all its
        children, and says so.
        """
        pid_file = words[words.index("--pid-file") + 1]
        command = [sys.executable, FAKE_CONMON, pid_file, *self.command(*words)]
        if outputs is not None:
            command[2:2] = ["--stdout", str(outputs)]
            more["pass_fds"] = (outputs,)
        if alone:
            command.insert(2, "--alone")
        process = subprocess.Popen(command, env={}, text=True, stdout=subprocess.PIPE, **more)
        self._running.append(process)
        return process

    def bundle(self, *args: str, name: str = "bundle", **changes) -> Path:
        """A bundle whose process has these args; `changes` replace top-level keys of its config.json."""
        path = self.base / name
        make_rootfs(path / "rootfs")
        spec = copy.deepcopy(default_spec(rootless=False))
        spec["process"]["args"] = list(args)
        spec["process"]["terminal"] = False
        for key, value in changes.items():
            if isinstance(value, dict) and key in spec and key != "annotations":
                spec[key].update(value)
            else:
                spec[key] = value
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def state(self, id: str) -> dict:
        return json.loads(self("state", id).stdout)

    def left(self) -> list[str]:
        """What lies in the state root."""
        return os.listdir(self.root)

    def helper(self, id: str) -> int:
        """The pid of the agent of this container's VM."""
        leftovers = json.loads((self.root / id / "leftovers.json").read_text())
        return int(leftovers["processes"][0][0])

    def close(self) -> None:
        for id in state.list_ids(str(self.root)):
            pid = state.owner_pid(str(self.root / id))
            if pid:
                os.kill(pid, signal.SIGKILL)
        for process in self._running:
            process.kill()
            if not process.stdout.closed:
                process.communicate()


def make_rootfs(path: Path) -> None:
    """Busybox under its names, and the scripts."""
    if (path / "bin").exists():
        return
    (path / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "sys", "tmp", "etc"):
        (path / name).mkdir()
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for name in (
        "cat",
        "dd",
        "echo",
        "env",
        "grep",
        "id",
        "ls",
        "pwd",
        "sh",
        "sleep",
        "stty",
        "touch",
        "true",
    ):
        (path / "bin" / name).symlink_to("busybox")
    for name, text in _SCRIPTS.items():
        (path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (path / "bin" / name).chmod(0o755)


def read(fd: int) -> bytes:
    """Some bytes, or a failure after the deadline."""
    ready, _, _ = select.select([fd], [], [], DEADLINE_S)
    assert ready, "nothing arrived"
    return os.read(fd, 4096)
