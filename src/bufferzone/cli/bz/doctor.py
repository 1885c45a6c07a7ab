"""`bz doctor`: whether this host runs sandboxes, found out by doing: it boots some, and names what to do."""

from __future__ import annotations

import json
import os
import time

from bufferzone import config, programs
from bufferzone.cli import output
from bufferzone.cli.bz import building
from bufferzone.cli.flags import Flag
from bufferzone.errors import BufferzoneError
from bufferzone.record import Record
from bufferzone.workload import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bufferzone.cli.flags import Options

FLAGS = (Flag("json", "", "as JSON"),)
USAGE = "[options]"
DESCRIPTION = (
    "Boots a sandbox without and one with a network and runs a program in each; then looks for the programs\n"
    "that some features need, and for space. The exit status is 1 when something does not work."
)
WORDS = (0, 0)
INTERSPERSED = True

OK, WARN, FAIL = "ok", "warn", "fail"
_PLACES = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/libexec/podman")
#: program, what it is for, Debian's package
_PROGRAMS = (
    ("skopeo", "images: bz run IMAGE, bz pull", "skopeo"),
    ("mkfs.erofs", "root file systems on a disk, snapshots of them", "erofs-utils"),
    ("nft", "egress rules without passt", "nftables"),
    ("catatonit", "bz run --init", "catatonit"),
)
_LEAST_FREE = 2 << 30
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Finding(Record):
    """What one check found. `fix` is what a person may do, empty where all is well."""

    check: str
    level: str
    says: str
    fix: str = ""


def run(options: Options, words: list[str]) -> int:
    """Check, telling each finding as it comes."""
    found = []
    for finding in _findings(options.root):
        found.append(finding)
        if not options.json:
            _tell(finding)
    if options.json:
        names = ("check", "level", "says", "fix")
        forms = [{name: getattr(finding, name) for name in names} for finding in found]
        output.print_text(json.dumps(forms, indent=2) + "\n")
    return int(any(finding.level == FAIL for finding in found))


def _tell(finding: Finding) -> None:
    output.print_table([[finding.level.ljust(4), finding.check.ljust(10), finding.says]])
    if finding.fix:
        output.print_table([["    ", " " * 10, f"fix: {finding.fix}"]])


def _findings(root: str) -> Iterator[Finding]:
    booted = _sandbox(root)
    yield from booted
    if booted[0].level == OK:
        yield _network(root)
    for name, purpose, package in _PROGRAMS:
        if programs.find(name, _PLACES):
            yield Finding(check=name, level=OK, says=purpose)
        else:
            yield Finding(
                check=name, level=WARN, says=f"missing: {purpose}", fix=f"apt-get install {package}"
            )
    yield _space()


def _sandbox(root: str) -> list[Finding]:
    """Whether one works; then the wall that it has is a finding of its own."""
    from bufferzone.library.sandbox import Sandbox

    begun = time.monotonic()
    try:
        with Sandbox(root=root, progress=building.progress()) as sandbox:
            up = time.monotonic()
            done = sandbox.run(["cat", _BOOT_ID])
            ran = time.monotonic()
            accelerator = sandbox.info().accelerator
    except BufferzoneError as error:
        return [_failed("sandbox", error)]
    if not done.ok:
        return [Finding(check="sandbox", level=FAIL, says=f"a program in it failed: {done.stderr.strip()}")]
    says = f"up in {up - begun:.1f} s, a program in {ran - up:.2f} s"
    return [Finding(check="sandbox", level=OK, says=says), _wall(done.stdout.strip(), accelerator)]


def _wall(boot_id: str, accelerator: str) -> Finding:
    with open(_BOOT_ID, encoding="ascii") as file:
        own = file.read().strip() != boot_id
    if not own:
        fix = 'remove vmm = "host" from the settings'
        return Finding(check="wall", level=FAIL, says="there is none: it ran on this host's kernel", fix=fix)
    if accelerator != "kvm":
        says = f"a kernel of its own, emulated ({accelerator}): slow, and less of a wall than KVM's"
        fix = "a machine with /dev/kvm that works; where this is a VM: nested virtualization"
        return Finding(check="wall", level=WARN, says=says, fix=fix)
    return Finding(check="wall", level=OK, says="a kernel of its own, on KVM")


def _network(root: str) -> Finding:
    from bufferzone.library.sandbox import Sandbox

    try:
        with Sandbox(root=root, network="passt") as sandbox:
            done = sandbox.run(["cat", "/proc/net/route"])
    except BufferzoneError as error:
        return _failed("network", error)
    if len(done.stdout.splitlines()) < 2:
        return Finding(check="network", level=WARN, says="passt runs, and this host has no route to offer")
    return Finding(check="network", level=OK, says="passt")


def _failed(check: str, error: BufferzoneError) -> Finding:
    return Finding(check=check, level=FAIL, says=error.message, fix=error.hint)


def _space() -> Finding:
    path = os.path.dirname(place.parent())
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    says = f"{free >> 20} MiB free in {path}"
    if free < _LEAST_FREE:
        fix = "bz image prune --all, or image_store elsewhere: " + config.load().image_store
        return Finding(check="space", level=WARN, says=says, fix=fix)
    return Finding(check="space", level=OK, says=says)
