"""`bz drill`: takes every known way out of a privileged container, and looks whether the host was reached.

Everything lies in a small tmpfs in a mount namespace of our own. Each attack has a container of its own, with
every capability and, where the runtime takes that, the PID namespace of the host: with bufferzone that is the
VM's. With another runtime most of it works: that is for a host that is thrown away. There everything lies on
the disk, in the host's mount namespace, where what the kernel runs for an attack, and who mounts the disk,
find it. What an attack changed of the host's settings is put back.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import contextmanager

from bufferzone.bench import attacks, canary, programs
from bufferzone.bench.places import own_place
from bufferzone.errors import HostError
from bufferzone.linux import mount as mnt
from bufferzone.linux.capability_names import CAPABILITIES
from bufferzone.linux.process import become_subreaper
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from bufferzone.bench.attacks import Attack

_MOST_S, _EXEC_S, _VERB_S = 600.0, 300.0, 120.0
#: of the place of all of it, and of the root file system of each container
_SIZE, _ROOT_SIZE = "32m", "size=48m,mode=755"
#: what runc says of a container that it cannot make; then nothing was tried
_BEGUN = b"begun"


class Outcome(Record):
    """`contained`: nothing of the host was reached. `touched`: what was. `lost`: what the attack cost:
    nothing, its process, or the whole VM. `seconds`: from its start until the sandbox was gone. `tried`: it
    ran.
    """

    name: str
    source: str
    tried: bool
    contained: bool
    touched: list[str]
    lost: str
    seconds: float


class Drill:
    """The attacks under one runtime: `prefix` is its command line up to the verb."""

    def __init__(self, prefix: Sequence[str], directory: str) -> None:
        self._directory, self._count = directory, 0
        self._prefix = [prefix[0], "--root", f"{directory}/root", *prefix[1:]]
        self._host, self._shared = f"{directory}/host", f"{directory}/shared"
        for path in (self._host, self._shared, f"{directory}/root"):
            os.mkdir(path, 0o755)
        library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        own = (prefix[0], "/usr/bin/python3", f"{library}/cli/main.py", f"{library}/client/waiter.py")
        self._canary = canary.Canary(self._host, self._shared, own)

    def run(self, attack: Attack) -> Outcome:
        """Let it run to its end; the canary says what it reached."""
        before = self._canary.look()
        begun = time.monotonic()
        said, status = self._container(attack, attacks.PRELUDE + attack.code)
        seconds = time.monotonic() - begun
        if attack.again:
            mount = {"destination": attack.again, "type": "tmpfs", "source": "tmpfs"}
            self._container(attack, 'print("begun")', [mount])
        if attack.linked:
            self._container(attack, 'print("begun")', linked=attack.linked)
        after = self._canary.look()
        touched = canary.touched(before, after)
        self._canary.put_back(before, after)
        if self._canary.word.encode() in said:
            touched.append("the word that only the host has")
        return Outcome(
            name=attack.name,
            source=attack.source,
            tried=_BEGUN in said,
            contained=not touched,
            touched=touched,
            lost=_lost(status),
            seconds=round(seconds, 2),
        )

    def close(self) -> None:
        """End everything that was started, by us or by what we started."""
        self.close_canary()
        programs.end_all()

    def close_canary(self) -> None:
        """End the process that is looked for."""
        self._canary.close()

    def _container(
        self, attack: Attack, code: str, mounts: Sequence[dict[str, Any]] = (), linked: str = ""
    ) -> tuple[bytes, int]:
        """What a container with this program said, and its exit status. `linked`: its /proc is this link."""
        self._count += 1
        id, place = f"drill-{self._count}", f"{self._directory}/{self._count}"
        self._make_rootfs(f"{place}/rootfs", attack, linked)
        facts = {"host": self._host, "shared": self._shared, "token": self._canary.token}
        argument = json.dumps({**facts, "victim": self._canary.victim})
        with open(f"{place}/config.json", "x", encoding="utf-8") as file:
            config = self._config(attack, ["/usr/bin/python3", "-ISc", code, argument], mounts)
            if linked:
                config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
            json.dump(config, file)
        words = [*self._prefix, "run", "--bundle", place, id]
        program = programs.Program(words, f"{place}/errors", heard=True)
        try:
            if attack.entered:
                _await([program], _EXEC_S, first_byte=True)
                self._enter(id, attack.entered, f"{place}/exec-errors")
            _await([program], _MOST_S)
            return program.output + _read(f"{place}/errors"), program.status or 0
        finally:
            program.close()
            self._verb(["delete", "--force", id], f"{place}/verb-errors")
            mnt.unmount(f"{place}/rootfs", mnt.MNT_DETACH)

    def _enter(self, id: str, program: str, errors: str) -> None:
        """As somebody on the host does who trusts the container."""
        self._verb(["exec", id, program], errors)
        self._verb(["exec", "--cwd", "/proc/self/fd/7", id, program], errors)

    def _verb(self, words: list[str], errors: str) -> None:
        try:
            programs.run([*self._prefix, *words], errors, _VERB_S)
        except HostError:
            pass  # it has ended, or does not let us in

    def _make_rootfs(self, path: str, attack: Attack, linked: str = "") -> None:
        os.makedirs(path)
        mnt.mount("rootfs", path, "tmpfs", mnt.MS_NOSUID, _ROOT_SIZE)
        for name in ("dev", *([] if linked else ["proc"]), "sys", "tmp", "usr", "etc", "shared"):
            os.mkdir(f"{path}/{name}")
        if linked:
            os.symlink(linked, f"{path}/proc")
        for name in ("bin", "sbin", "lib", "lib64"):
            os.symlink(f"usr/{name}", f"{path}/{name}")
        if attack.masked:
            os.symlink(attack.masked, f"{path}/dev/null")

    def _config(self, attack: Attack, args: list[str], mounts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As privileged as a config.json can make it."""
        sets = ("bounding", "effective", "permitted", "inheritable")
        device = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}
        bind = {"type": "bind", "options": ["rbind", "rw"]}
        all_mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            *([] if attack.masked else [device]),
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
            {"destination": "/shared", "source": self._shared, **bind},
            *mounts,
        ]
        masked = {"maskedPaths": ["/proc/timer_list"]} if attack.masked else {}
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/usr/bin:/usr/sbin"],
                "cwd": "/",
                "capabilities": {name: list(CAPABILITIES) for name in sets},
            },
            "root": {"path": "rootfs"},
            "mounts": all_mounts,
            "linux": {
                "namespaces": [{"type": kind} for kind in ("mount", "ipc", "uts", "network")],
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
                **masked,
            },
        }


def run(order: dict[str, Any], progress: Callable[[str], None]) -> list[Outcome]:
    """The attacks `only` (empty: all) under `runtime`, the command line of one. `open`: the host is thrown
    away. Raises `HostError`.
    """
    become_subreaper()
    with _open_place() if order["open"] else own_place("bufferzone-drill-", _SIZE) as directory:
        return _attack(order, directory, progress)


@contextmanager
def _open_place() -> Iterator[str]:
    """A directory on the disk, where everybody sees it."""
    with tempfile.TemporaryDirectory(
        prefix="bufferzone-drill-", dir="/var/tmp", ignore_cleanup_errors=True
    ) as directory:
        os.chmod(directory, 0o711)
        yield directory


def _attack(order: dict[str, Any], directory: str, progress: Callable[[str], None]) -> list[Outcome]:
    found = []
    programs.watch_children()
    drill = Drill(order["runtime"], directory)
    try:
        for attack in attacks.ATTACKS:
            if not order["only"] or attack.name in order["only"]:
                progress(attack.name)
                found.append(drill.run(attack))
    except KeyboardInterrupt:
        progress("interrupted")  # what was found so far is told
    finally:
        drill.close()
    return found


def rows(found: list[Outcome]) -> list[list[str]]:
    """A table, with its head."""
    head = ["ATTACK", "HOST", "LOST", "SECONDS", "REACHED"]
    return [
        head,
        *(
            [
                each.name,
                "REACHED" if not each.contained else "untouched" if each.tried else "not tried",
                each.lost,
                f"{each.seconds:.1f}",
                ", ".join(each.touched),
            ]
            for each in found
        ),
    ]


def _lost(status: int) -> str:
    return {0: "nothing", 137: "the VM, or its process"}.get(status, f"its process (status {status})")


def _await(started: list[programs.Program], timeout_s: float, *, first_byte: bool = False) -> None:
    try:
        programs.await_all(started, timeout_s, first_byte=first_byte)
    except HostError:
        pass  # it failed, or has to be ended: that is an outcome too


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 20)
