"""A whole Debian host in a machine that QEMU emulates: systemd, cgroup v2, AppArmor, and KVM.

TCG emulates AMD's virtualization, so the host inside has a KVM of its own whatever this machine has: its
functions can be tested anywhere, its times cannot (emulation inside emulation is 10 to 20 times slower).

    tree     mmdebstrap's, with what scripts/install wants: made once, kept by the hash of its inputs
    layer    a throw-away overlay on the tree with this checkout, installed, and its guest image
    disk     mke2fs -d of both: no loop device, no mount that outlives us
    machine  QEMU; commands go through virtio-serial ports, one to root, one to a user with a systemd session

Whatever happens, the machine ends with this program, and the work
directory goes; after SIGKILL, with the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import firecracker_program
from host_machine import CHECKOUT, MEMORY_MIB, PORT, USER, USERS, Failed, Machine

HERE = Path(__file__).resolve().parent
#: a directory for each run, locked by it; one that is kept has another name
WORK, PREFIX, KEPT = Path("/var/tmp"), "bufferzone-host-", "bufferzone-kept-host-"
CACHE = Path("/var/cache/bufferzone/hosts")
RELEASES = ("bookworm", "trixie", "sid")
#: what makes a tree a host; what bufferzone needs on top is scripts/install's to know
PACKAGES = """
    systemd systemd-sysv dbus dbus-user-session libpam-systemd udev kmod linux-image-cloud-amd64
    initramfs-tools apparmor git python3 python3-pytest procps iproute2 ca-certificates docker.io e2fsprogs
    strace
"""
#: on Debian 12 they are parts of others
BY_RELEASE = {"trixie": ("docker-cli",), "sid": ("docker-cli",)}
#: this machine needs these
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "git": "git",
}
#: of tests/host, in turn
STAGES = {"checks": "one after another", "before": "what a reboot finds", "after": "what is left of it"}
#: how the reason begins why a check is skipped that is for another user or stage
OTHERS = "for the other"
Row = tuple[str, str, str, float]  # name, user, result, seconds
DISK = "10G"
#: what the disk, the layer and the first tree take of /var/tmp, and QEMU of memory beside its guest's
DISK_GIB, AROUND_MIB = 12, 1024


def main() -> int:
    options = _options()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    try:
        _check()
        with _workspace(options.keep) as work:
            disk, kernel, initrd = _disk(options.release, work)
            with Machine(disk, kernel, initrd, work / "console.log", _step) as machine:
                if options.command:
                    return machine.run(options.user, options.command)
                return _prove(machine)
    except Failed as error:
        print(f"host: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _ended(number: int, _: object) -> None:
    """So that what is running is left in order."""
    sys.exit(128 + number)


@contextlib.contextmanager
def _workspace(keep: bool) -> Iterator[Path]:
    """A directory that goes with the run, and with the run after it where this one was killed."""
    for old in WORK.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(old):  # BlockingIOError: another run's
            _step(f"removing what a run that was killed has left: {old}")
            shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=WORK))
    with _locked(work):
        try:
            yield work
        finally:
            if keep:
                kept = work.with_name(work.name.replace(PREFIX, KEPT))
                work.rename(kept)
                print(f"host: kept: {kept}")
            else:
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Held by this process alone; BlockingIOError where another one does."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/host", description=__doc__.partition("\n")[0])
    parser.add_argument("release", choices=RELEASES)
    parser.add_argument("--user", choices=USERS, default="root", help="who runs COMMAND")
    parser.add_argument("--keep", action="store_true", help="keep disk and console log")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="instead of quickstart and the checks")
    return parser.parse_args()


def _check() -> None:
    """What this machine has to have, before anything is made."""
    if os.geteuid() != 0:
        raise Failed("not root")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise Failed(f"{program} is missing; run: apt-get install {package}")
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    if (free := int(facts["MemAvailable"].split()[0]) // 1024) < (wanted := MEMORY_MIB + AROUND_MIB):
        raise Failed(f"{free} MiB of memory are free, the host needs {wanted}")
    if (free := shutil.disk_usage(WORK).free >> 30) < DISK_GIB:
        raise Failed(f"{WORK} has {free} GiB left, the host needs {DISK_GIB}")


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
    try:
        program = firecracker_program.fetch(HERE.parent / "build/firecracker", _python_with_pip())
        _call(["tar", "-rf", str(archive), "-C", str(HERE.parent), str(program.relative_to(HERE.parent))])
    except RuntimeError as error:
        _step(f"{error}; its checks are skipped")
    disk = work / "disk.img"
    words = [*map(str, (tree, work, archive, disk)), DISK, CHECKOUT, USER, PORT]
    layer = [str(HERE / "host_layer"), *words]
    _call(["unshare", "--mount", "--pid", "--fork", "--kill-child", *layer])
    kernel = sorted((tree / "boot").glob("vmlinuz-*"))[-1]
    return disk, kernel, kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))


def _python_with_pip() -> str:
    """That of the test tools, where scripts/test has been; else ours, which has pip or has not."""
    tools = HERE.parent / "build/venv/bin/python"
    return str(tools) if tools.exists() else sys.executable


def _tree(release: str) -> Path:
    """The tree of `release` with all packages, made where none of these inputs is there."""
    inputs = [
        PACKAGES,
        *BY_RELEASE.get(release, ()),
        (HERE / "install").read_text(),
        (HERE / "apt_sources.py").read_text(),
    ]
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
    include = ",".join([*PACKAGES.split(), *BY_RELEASE.get(release, ())])
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


# the proof


def _prove(machine: Machine) -> int:
    """Quickstart, then the checks as root and as the user, over a reboot too; a table at the end."""
    begin = time.monotonic()
    _step("quickstart")
    status = machine.run("root", ["./scripts/quickstart"])
    rows = [("quickstart", "root", "passed" if status == 0 else "FAILED", time.monotonic() - begin)]
    for stage in STAGES:
        if stage == "after":
            machine.reboot()
        for user in USERS:
            rows += _checks(machine, stage, user)
    print()
    for name, user, result, seconds in rows:
        print(f"{result:8} {seconds:6.0f} s  {user:6} {name}")
    failed = sum(row[2] == "FAILED" for row in rows)
    _step(f"{failed} failed of {sum(row[2] != 'skipped' for row in rows)}")
    return 1 if failed else 0


def _checks(machine: Machine, stage: str, user: str) -> list[Row]:
    _step(f"checks as {user}, {STAGES[stage]}")
    report = f"/tmp/report-{stage}-{user}.xml"
    words = ["-p", "no:cacheprovider", "-vv", "-rs", f"--junitxml={report}", "tests/host"]
    set_ = [f"BUFFERZONE_HOST={stage}", f"BUFFERZONE_FIRECRACKER={CHECKOUT}/build/firecracker/firecracker"]
    machine.run(user, ["env", *set_, "/usr/bin/python3", "-B", "-m", "pytest", *words])
    return table(user, machine.ask(user, ["cat", report])[1])


def table(user: str, report: str) -> list[Row]:
    """From a report in JUnit's XML: the checks that were for this user. None at all is a failure."""
    try:
        cases = list(ElementTree.fromstring(report).iter("testcase"))
    except ElementTree.ParseError:
        cases = []
    found = []
    for case in cases:
        name, skipped = case.get("name", "?"), case.find("skipped")
        result = "passed" if skipped is None else "skipped"
        if skipped is not None:
            if (reason := skipped.get("message", "")).startswith(OTHERS):
                continue
            name += f": {reason}"
        if case.find("failure") is not None or case.find("error") is not None:
            result = "FAILED"
        found.append((name, user, result, float(case.get("time", "0"))))
    return found or [("no check ran to a report", user, "FAILED", 0.0)]


if __name__ == "__main__":
    sys.exit(main())
