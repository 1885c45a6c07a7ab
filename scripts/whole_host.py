"""A whole Debian host in a machine that QEMU emulates: systemd, cgroup v2, AppArmor, and KVM.

TCG emulates AMD's virtualization, so the host inside has a KVM of its own whatever this machine has: its
functions can be tested anywhere, its times cannot (emulation inside emulation is 10 to 20 times slower).

    tree     mmdebstrap's, with what scripts/install wants: made once, kept by the hash of its inputs
    layer    a throw-away overlay on the tree with this checkout, installed, and its guest image
    disk     mke2fs -d of both: no loop device, no mount that outlives us
    machine  QEMU; commands go through virtio-serial ports, one to root, one to a user with a systemd session

Whatever happens, the machine ends with this program (PR_SET_PDEATHSIG) and the work directory goes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = "/srv/bufferzone"
USER = "alice"
CACHE = Path("/var/cache/bufferzone/hosts")
RELEASES = ("bookworm", "trixie", "sid")
#: what makes a tree a host; what bufferzone needs on top is scripts/install's to know
PACKAGES = """
    systemd systemd-sysv dbus dbus-user-session libpam-systemd udev kmod linux-image-cloud-amd64
    initramfs-tools apparmor git python3 python3-pytest procps iproute2 ca-certificates docker.io e2fsprogs
"""
#: this machine needs these
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "git": "git",
}
MEMORY_MIB = 6144
DISK = "10G"
#: seconds, for a machine that is four times slower than an idle one
BOOT_S, COMMAND_S = 900.0, 7200.0
#: what QEMU may take to end after it closed our end
SETTLE_S = 5.0
_PORTS = {"root": "org.bufferzone.host.root", USER: "org.bufferzone.host.user"}
_KERNEL_WORDS = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.show_status=0 quiet apparmor=1 security=apparmor "
    "no_timer_check"  # on a busy machine the kernel counts too few ticks, and goes on with another timer
)


class Failed(Exception):
    """The one plain reason."""


def main() -> int:
    options = _options()
    work = Path(tempfile.mkdtemp(prefix="bufferzone-host-", dir="/var/tmp"))
    try:
        _check_programs()
        disk, kernel, initrd = _disk(options.release, work)
        with Machine(work, disk, kernel, initrd) as machine:
            if options.command:
                return machine.run(options.user, options.command)
            return _prove(machine)
    except Failed as error:
        print(f"host: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.keep:
            print(f"host: kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/host", description=__doc__.partition("\n")[0])
    parser.add_argument("release", choices=RELEASES)
    parser.add_argument("--user", choices=sorted(_PORTS), default="root", help="who runs COMMAND")
    parser.add_argument("--keep", action="store_true", help="keep disk and console log")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="instead of quickstart and the checks")
    return parser.parse_args()


def _check_programs() -> None:
    if os.geteuid() != 0:
        raise Failed("not root")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise Failed(f"{program} is missing; run: apt-get install {package}")


def _step(text: str) -> None:
    print(f"host: {time.monotonic() - _BEGIN:6.0f} s  {text}", flush=True)


_BEGIN = time.monotonic()


# the disk


def _disk(release: str, work: Path) -> tuple[Path, Path, Path]:
    """(disk, kernel, initrd) of a host of `release` with this checkout as it is, uncommitted changes too."""
    tree = _tree(release)
    _step("installing this checkout into a layer above the tree")
    for name in ("upper", "scratch", "root"):
        (work / name).mkdir()
    archive = work / "checkout.tar"
    _call(["tar", "-cf", str(archive), "--exclude=./build", "--exclude=./.git", "-C", str(HERE.parent), "."])
    disk = work / "disk.img"
    layer = [str(HERE / "host_layer"), str(tree), str(work), str(archive), str(disk), DISK, CHECKOUT, USER]
    _call(["unshare", "--mount", "--pid", "--fork", "--kill-child", *layer])
    kernel = sorted((tree / "boot").glob("vmlinuz-*"))[-1]
    return disk, kernel, kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))


def _tree(release: str) -> Path:
    """The tree of `release` with all packages, made where none of these inputs is there."""
    inputs = [PACKAGES, (HERE / "install").read_text(), (HERE / "apt_sources.py").read_text()]
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = CACHE / f"{release}-{key}"
    if tree.is_dir():
        return tree
    _step(f"making a tree of {release}, once: about three minutes")
    new = Path(tempfile.mkdtemp(prefix=f".{release}-", dir=CACHE))
    try:
        _bootstrap(release, new / "tree")
        for old in CACHE.glob(f"{release}-*"):
            shutil.rmtree(old, ignore_errors=True)
        os.rename(new / "tree", tree)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return tree


def _bootstrap(release: str, tree: Path) -> None:
    sources = subprocess.run(
        [sys.executable, "-I", str(HERE / "apt_sources.py"), release], stdout=subprocess.PIPE, check=True
    ).stdout
    listed = tree.with_suffix(".sources")
    listed.write_bytes(sources)
    options = [
        f"--aptopt={path}"
        for path in sorted(Path("/etc/apt/apt.conf.d").iterdir())
        if any(line.lstrip().startswith("Acquire") for line in path.read_text(errors="replace").splitlines())
    ]
    include = ",".join(PACKAGES.split())
    _call(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={include}",
            *options,
            release,
            str(tree),
            str(listed),
        ]
    )
    _call([str(HERE / "host_layer"), "--packages", str(tree)])


def _call(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Failed(f"failed with status {done.returncode}: {shlex.join(argv[:6])}")


# the machine


class Machine:
    """The running host. A context: on leaving, QEMU is gone."""

    def __init__(self, work: Path, disk: Path, kernel: Path, initrd: Path) -> None:
        self._console = work / "console.log"
        self._ports: dict[str, socket.socket] = {}
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-accel", "tcg,thread=multi,tb-size=1024", "-M", "q35", "-cpu", "max", "-smp", "2"),
            *("-m", str(MEMORY_MIB), "-display", "none", "-nodefaults", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", _KERNEL_WORDS),
            *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
            *("-serial", f"file:{self._console}", "-monitor", "none"),
            *("-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        ]
        ends = []
        for number, (user, name) in enumerate(_PORTS.items(), 1):
            ours, theirs = socket.socketpair()
            self._ports[user] = ours
            ends.append(theirs)
            argv += ["-chardev", f"socket,id=c{number},fd={theirs.fileno()}"]
            argv += ["-device", f"virtserialport,nr={number},chardev=c{number},name={name}"]
        _step("booting")
        self._qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[e.fileno() for e in ends])
        for end in ends:
            end.close()
        self._lines = {user: port.makefile("rb") for user, port in self._ports.items()}
        self._ready: set[str] = set()

    def __enter__(self) -> Machine:
        self._await("root")
        _step("the host is up")
        return self

    def __exit__(self, *_: object) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _await(self, user: str) -> None:
        if user in self._ready:
            return
        self._ports[user].settimeout(BOOT_S)
        answer = self._next(user, f"{user} got no answer from the host")
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

    def _lost(self, problem: str) -> Failed:
        """Why there is no answer: how QEMU ended, if it has, and what the host said last."""
        try:
            ended = f"QEMU ended with status {self._qemu.wait(SETTLE_S)}"
        except subprocess.TimeoutExpired:
            ended = "QEMU runs still"
        tail = self._console.read_text(errors="replace").splitlines()[-8:]
        return Failed("\n  ".join([f"{problem}; {ended}; its console ends with:", *tail]))

    def run(self, user: str, argv: list[str], quiet: bool = False) -> int:
        """Run a command there and show what it prints; its exit status."""
        return self.ask(user, argv, quiet=quiet)[0]

    def ask(self, user: str, argv: list[str], *, quiet: bool = True) -> tuple[int, str]:
        """(exit status, what it printed)."""
        self._await(user)
        problem = f"no answer while {user} ran: {shlex.join(argv)}"
        self._ports[user].settimeout(COMMAND_S)
        try:
            self._ports[user].sendall(json.dumps({"argv": argv, "directory": CHECKOUT}).encode() + b"\n")
        except OSError as error:  # it had ended before
            raise self._lost(problem) from error
        printed = []
        while True:
            answer = self._next(user, problem)
            if "status" in answer:
                return int(str(answer["status"])), "".join(printed)
            printed.append(str(answer["out"]))
            if not quiet:
                print(printed[-1], end="", flush=True)


# the proof


def _prove(machine: Machine) -> int:
    """Quickstart, then the checks as root and as the user; a table at the end."""
    rows = []
    begin = time.monotonic()
    _step("quickstart")
    status = machine.run("root", ["./scripts/quickstart"])
    rows.append(("quickstart", "root", "passed" if status == 0 else "FAILED", time.monotonic() - begin))
    for user in _PORTS:
        _step(f"checks as {user}")
        report = f"/tmp/report-{user}.xml"
        words = ["-p", "no:cacheprovider", "-v", "-rs", f"--junitxml={report}", "tests/host"]
        machine.run(user, ["env", "BUFFERZONE_HOST=1", "/usr/bin/python3", "-B", "-m", "pytest", *words])
        rows += _rows(user, machine.ask(user, ["cat", report])[1])
    print()
    for name, user, result, seconds in rows:
        print(f"{result:8} {seconds:6.0f} s  {user:6} {name}")
    failed = [row for row in rows if row[2] == "FAILED"]
    print(f"\nhost: {len(failed)} failed of {sum(row[2] != 'skipped' for row in rows)}")
    return 1 if failed else 0


def _rows(user: str, report: str) -> list[tuple[str, str, str, float]]:
    try:
        cases = ElementTree.fromstring(report).iter("testcase")
    except ElementTree.ParseError:
        return [("checks", user, "FAILED", 0.0)]
    found = []
    for case in cases:
        bad = case.find("failure") is not None or case.find("error") is not None
        result = "FAILED" if bad else "skipped" if case.find("skipped") is not None else "passed"
        found.append((case.get("name", "?"), user, result, float(case.get("time", "0"))))
    return [row for row in found if row[2] != "skipped"]


if __name__ == "__main__":
    sys.exit(main())
