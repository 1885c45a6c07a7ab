"""An ordinary user of this machine, made for a test and removed after it, and rootless Podman as that user.

The user has subordinate ids, a home and a runtime directory, and no right besides. Whatever of it still runs
or lies around at the end is removed with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.podman import DROP_IN, ROOT, TIMEOUT_S, Done, remove_tree

#: program -> package
PROGRAMS = {
    "useradd": "passwd",
    "newuidmap": "uidmap",
    "newgidmap": "uidmap",
    "podman": "podman",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
_PROGRAM = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {source!r})
from bufferzone.{module} import main
sys.exit(main(sys.argv[1:]))
"""


def missing() -> str:
    """Why there can be no such user here; empty when there can."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    return ""


_numbers = itertools.count()
#: /dev/net/tun as udev makes it, in a mount namespace of the test's: on a machine without udev it is root's
_TUN = """
set -e
mount -t tmpfs -o mode=755 tmpfs /dev/net
mknod -m 666 /dev/net/tun c 10 200
echo ready
exec sleep 3600
"""


class User:
    """`bz-test-PID-N`: `home`, `runtime` (XDG_RUNTIME_DIR) and a readable copy of the package in `programs`.

    `tun`: it may open /dev/net/tun, as on any Debian with udev.
    """

    def __init__(self, *, tun: bool = False) -> None:
        self.name = f"bz-test-{os.getpid()}-{next(_numbers)}"
        self._tun: subprocess.Popen[bytes] | None = None
        if tun:
            words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _TUN]
            self._tun = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert self._tun.stdout is not None
            assert self._tun.stdout.readline() == b"ready\n"
        self.directory = Path(tempfile.mkdtemp(prefix="bzr-"))  # slirp4netns has sockets below it
        self.directory.chmod(0o755)
        self.home, self.runtime = self.directory / "home", self.directory / "run"
        self.programs = self.directory / "bin"
        subprocess.run(
            ["useradd", "--no-create-home", "--home-dir", str(self.home), "--shell", "/bin/sh", self.name],
            check=True,
            capture_output=True,
        )
        self.uid, self.gid = pwd.getpwnam(self.name).pw_uid, pwd.getpwnam(self.name).pw_gid
        for path in (self.home, self.runtime):
            path.mkdir(mode=0o700)
            os.chown(path, self.uid, self.gid)
        shutil.copytree(ROOT / "src", self.directory / "src", ignore=shutil.ignore_patterns("__pycache__"))
        self.programs.mkdir()
        for name, module in (("bufferzone", "cli.main"), ("bz", "cli.bz.main")):
            program = self.programs / name
            program.write_text(_PROGRAM.format(source=str(self.directory / "src"), module=module))
            program.chmod(0o755)
        subprocess.run(["chmod", "-R", "go+rX", str(self.directory / "src")], check=True)

    @property
    def state(self) -> Path:
        """The state root."""
        return self.runtime / "bufferzone"

    def settings(self, text: str) -> None:
        """Write the user's settings file."""
        path = self.home / ".config" / "bufferzone" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        for directory in (path.parent.parent, path.parent):
            os.chown(directory, self.uid, self.gid)  # Podman 5 reads none that is another's
        path.write_text(text)

    def own_ids(self) -> set[int]:
        """The uids on the host that this user's programs may have: its own and the subordinate ones."""
        found = {self.uid}
        for line in Path("/etc/subuid").read_text().splitlines():
            name, first, count = line.split(":")
            if name == self.name:
                found |= set(range(int(first), int(first) + int(count)))
        return found

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.home),
            "USER": self.name,
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",  # what Podman 5 says at every call is not the runtime's
            **more,
        }

    def argv(self, *words: object) -> list[str]:
        """A command line of the user's, without any privilege of ours."""
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if self._tun is not None:
            become = ["nsenter", f"--mount=/proc/{self._tun.pid}/ns/mnt", f"--wd={self.home}", *become]
        return [*become, *(str(word) for word in words)]

    def start(
        self, *words: object, env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """A command as the user, running; the caller waits for it."""
        env = self.environment() if env is None else env
        return subprocess.Popen(self.argv(*words), env=env, cwd=self.home, **more)

    def run(self, *words: object, env: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> Done:
        """A command as the user, whatever its exit status."""
        done = subprocess.run(
            self.argv(*words),
            env=self.environment() if env is None else env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def processes(self) -> list[int]:
        """Every living process with an id of the user's."""
        ids = self.own_ids()
        return [pid for pid in _pids() if uids_of(pid) & ids and not _is_zombie(pid)]

    def remove(self) -> None:
        """The user, what it runs and what it owns."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._tun is not None:
            self._tun.kill()
            self._tun.communicate()
        subprocess.run(["userdel", "--force", self.name], check=False, capture_output=True)
        remove_tree(self.directory)


@contextlib.contextmanager
def ordinary_user(image: str, settings: str = "", *, tun: bool = False) -> Iterator[User]:
    """A user that boots the image in the directory `image`, which root has built; gone afterwards."""
    user = User(tun=tun)
    try:
        if user.run("unshare", "--user", "true").status != 0:
            pytest.skip("ordinary users may not make user namespaces here")
        user.settings(f'image = "{image}"\n{settings}')
        yield user
    finally:
        user.remove()


class RootlessPodman:
    """`podman --runtime bufferzone` as `user`, with that user's own storage."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.image = ""

    @property
    def options(self) -> list[object]:
        """What each of its command lines begins with."""
        runtime = self.user.programs / "bufferzone"
        return ["--runtime", runtime, "--cgroup-manager", "cgroupfs", "--events-backend", "file"]

    def _words(self, *words: object) -> list[object]:
        return ["podman", *self.options, *words]

    def environment(self) -> dict[str, str]:
        """What it is started with."""
        return self.user.environment(CONTAINERS_CONF=str(self.drop_in()))

    def start(self, *words: object, **more: Any) -> subprocess.Popen[bytes]:
        """The command, running; the caller waits for it."""
        return self.user.start(*self._words(*words), env=self.environment(), **more)

    def any(self, *words: object, timeout_s: float = TIMEOUT_S) -> Done:
        """The command, whatever its exit status."""
        return self.user.run(*self._words(*words), env=self.environment(), timeout_s=timeout_s)

    def __call__(self, *words: object, status: int = 0, timeout_s: float = TIMEOUT_S) -> Done:
        """The same, and the exit status has to be `status`."""
        done = self.any(*words, timeout_s=timeout_s)
        assert done.status == status, f"podman {' '.join(map(str, words))}: {done}"
        return done

    def drop_in(self) -> Path:
        """Podman's settings, where the user can read them."""
        path = self.user.directory / "containers.conf"
        if not path.exists():
            shutil.copy(DROP_IN, path)
        return path


def uids_of(pid: int) -> set[int]:
    """Real, effective, saved and file system uid of a process, in our user namespace; empty when it ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for child in _pids():
        try:
            parent = int(Path(f"/proc/{child}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def until(true: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Wait until `true()`; fails naming `what`."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        select.select([], [], [], 0.1)
