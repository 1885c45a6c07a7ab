"""The machine of scripts/host: QEMU, and commands in it through virtio-serial ports (host_runner.py answers).

Its QEMU ends with whoever started it (PR_SET_PDEATHSIG), however that ends.
"""

from __future__ import annotations

import json
import re
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

#: in the machine
CHECKOUT = "/srv/bufferzone"
USER = "alice"
USERS = ("root", USER)
#: of a port, before the user's name
PORT = "org.bufferzone.host."
MEMORY_MIB = 6144
#: seconds, for a machine ten times slower than an idle one: a boot, the longest silence of a command
BOOT_S, SILENCE_S = 1800.0, 3600.0
#: seconds between two lines that say that a boot goes on
TELL_S = 60.0
#: seconds that QEMU may take to end after it closed our end
SETTLE_S = 5.0
_KERNEL_WORDS = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.show_status=1 quiet apparmor=1 security=apparmor "
    "panic=-1 "  # with -no-reboot QEMU ends then, which says more than silence; emulation can be at fault
    "no_timer_check"  # on a busy machine the kernel counts too few ticks, and goes on with another timer
)
#: what a terminal would take for commands, ECMA-48, and what else is no text
_ESCAPES = re.compile(r"\x1b\][0-9;]*\x07?|\x1b\[[^@-~]*[@-~]|\x1b[@-Z\\-_]|[^\x20-\x7e\n]")


class Failed(Exception):
    """The one plain reason."""


class Machine:
    """The running host. A context: on leaving, QEMU is gone. `tell` shows a line of progress."""

    def __init__(
        self, disk: Path, kernel: Path, initrd: Path, console: Path, tell: Callable[[str], None]
    ) -> None:
        self._files = (disk, kernel, initrd)
        self._console = console
        self._tell = tell
        self._start()

    def _start(self) -> None:
        self._ports: dict[str, socket.socket] = {}
        ends = []
        argv = self._argv()
        for number, user in enumerate(USERS, 1):
            ours, theirs = socket.socketpair()
            self._ports[user] = ours
            ends.append(theirs)
            argv += ["-chardev", f"socket,id=c{number},fd={theirs.fileno()}"]
            argv += ["-device", f"virtserialport,nr={number},chardev=c{number},name={PORT}{user}"]
        self._tell("booting")
        self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[e.fileno() for e in ends])
        for end in ends:
            end.close()
        self._lines = {user: port.makefile("rb") for user, port in self._ports.items()}
        self._ready: set[str] = set()

    def _argv(self) -> list[str]:
        disk, kernel, initrd = self._files
        return [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            # one CPU: with two, what one of them patches in the kernel the other may run in its old
            # translation, and the kernel panics (int3 in __schedule, QEMU 7.2)
            *("-accel", "tcg,thread=multi,tb-size=1024", "-M", "q35", "-cpu", "max", "-smp", "1"),
            *("-m", str(MEMORY_MIB), "-display", "none", "-nodefaults", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", _KERNEL_WORDS),
            *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
            *("-serial", f"file:{self._console}", "-monitor", "none"),
            *("-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        ]

    def __enter__(self) -> Machine:
        try:
            self._await("root")
        except BaseException:
            self.__exit__()
            raise
        self._tell("the host is up")
        return self

    def __exit__(self, *_: object) -> None:
        self._qemu.kill()
        self._qemu.wait()
        for user in USERS:
            self._lines[user].close()
            self._ports[user].close()

    def _await(self, user: str) -> None:
        """Until the user's runner has said that it is there."""
        if user in self._ready:
            return
        problem = f"{user} got no answer from the host in {BOOT_S:.0f} s"
        deadline = time.monotonic() + BOOT_S
        while not select.select([self._ports[user]], [], [], TELL_S)[0]:
            if time.monotonic() > deadline:
                raise self._lost(problem)
            self._tell(f"{user} waits for the host; its console: {self._said(1)[0]}")
        answer = self._next(user, problem)
        if "ready" not in answer:
            raise Failed(f"{user}: unexpected answer: {answer}")
        self._ready.add(user)

    def _next(self, user: str, problem: str) -> dict[str, object]:
        try:
            line = self._lines[user].readline()
        except OSError:  # in time, or at all
            line = b""
        if not line:
            raise self._lost(problem)
        answer: dict[str, object] = json.loads(line)
        return answer

    def _said(self, count: int) -> list[str]:
        """The last lines of the console that say something."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        lines = [line.strip() for line in _ESCAPES.sub("", text).splitlines() if line.strip()]
        return lines[-count:] or ["nothing yet"]

    def _lost(self, problem: str) -> Failed:
        """Why there is no answer: how QEMU ended, if it has, and what the host said last."""
        try:
            ended = f"QEMU ended with status {self._qemu.wait(SETTLE_S)}"
        except subprocess.TimeoutExpired:
            ended = "QEMU runs still"
        return Failed("\n  ".join([f"{problem}; {ended}; its console ends with:", *self._said(8)]))

    def run(self, user: str, argv: list[str]) -> int:
        """Run a command there and show what it prints; its exit status."""
        return self._ask(user, argv, lambda text: print(text, end="", flush=True))

    def ask(self, user: str, argv: list[str]) -> tuple[int, str]:
        """(exit status, what it printed)."""
        printed: list[str] = []
        status = self._ask(user, argv, printed.append)
        return status, "".join(printed)

    def _ask(self, user: str, argv: list[str], show: Callable[[str], object]) -> int:
        self._await(user)
        problem = f"no answer while {user} ran: {shlex.join(argv)}"
        self._ports[user].settimeout(SILENCE_S)
        try:
            self._ports[user].sendall(json.dumps({"argv": argv, "directory": CHECKOUT}).encode() + b"\n")
        except OSError as error:  # it had ended before
            raise self._lost(problem) from error
        while True:
            answer = self._next(user, problem)
            if "status" in answer:
                return int(str(answer["status"]))
            show(str(answer["out"]))

    def reboot(self) -> None:
        """As `systemctl reboot` does it, with all that runs in it; the ports are new ones then."""
        self._await("root")
        self._tell("rebooting")
        self._ports["root"].sendall(
            json.dumps({"argv": ["systemctl", "reboot"], "directory": "/"}).encode() + b"\n"
        )
        try:
            status = self._qemu.wait(BOOT_S)
        except subprocess.TimeoutExpired:
            raise self._lost(f"the host did not go down in {BOOT_S:.0f} s") from None
        if status:
            raise self._lost("the host did not reboot")
        self.__exit__()
        self._start()
        self.__enter__()
