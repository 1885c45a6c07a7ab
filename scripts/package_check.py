"""The half of `scripts/package --check` that runs in the tree, as its root: one line for what holds.

    package_check.py PLACE     PLACE has old.deb, new.deb, still_running.py and busybox_image.py

Ends with 1 and the reason at the first that does not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import still_running

PLACE = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
BEGIN = time.monotonic()
#: what a container needs beside our own package's Depends and Recommends
AROUND = "busybox-static crun netavark aardvark-dns iptables catatonit"
#: what installing any package changes, what Podman keeps of its own, what the kernel makes up
NOT_OURS = (
    *("/proc", "/sys", "/dev", "/tmp", "/mnt", "/opt", "/root", "/var/lib/dpkg", "/var/lib/apt"),
    *("/var/cache", "/var/log", "/var/lib/containers", "/run/containers", "/run/libpod", "/run/lock"),
    *("/run/netns", "/run/crun", "/var/lib/cni", "/etc/cni", "/run/cni", "/run/podman", "/run/systemd"),
)
VERSIONS = "/usr/lib/bufferzone"
MARK = "packagecheck"


class Failed(Exception):
    """The one plain reason."""


def main() -> int:
    try:
        prepare()
        before = files()
        unpacked_but_not_configured()
        old = installed("old.deb")
        image = first_image()
        run("podman", "run", "-d", "--name", MARK, "--runtime", "bufferzone", image, "sleep", "86400")
        upgraded_under_a_container(old, image)
        another_interpreter()
        removal_waits()
        missing_programs(image)
        run("podman", "rm", "-f", "-t", "0", MARK)
        purged(before)
    except Failed as error:
        print(f"package: failed: {error}", file=sys.stderr)
        return 1
    told("all of it holds")
    return 0


def told(text: str) -> None:
    print(f"{time.monotonic() - BEGIN:6.0f} s  {text}", flush=True)


def attempt(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False
    )


def run(*argv: str) -> str:
    """What a command prints that has to succeed."""
    done = attempt(*argv)
    if done.returncode:
        raise Failed(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def check(holds: bool, text: str) -> None:
    if not holds:
        raise Failed(text)


def apt(*words: str) -> str:
    return run("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", *words)


def prepare() -> None:
    """What the package needs is there before we look at what the package leaves; an earlier check is not."""
    if shutil.which("podman"):
        attempt("podman", "rm", "-f", "-t", "0", MARK, f"{MARK}-new")
    attempt("dpkg", "--purge", "bufferzone")
    apt("update")
    fields = run("dpkg-deb", "-f", str(PLACE / "old.deb"), "Depends", "Recommends")
    needs = [line.partition(":")[2].strip() for line in fields.splitlines()]
    apt("--no-install-recommends", "satisfy", *needs)
    apt("--no-install-recommends", "install", *AROUND.split())
    run("podman", "info")
    told("installed what the package needs")


def files() -> set[str]:
    """Every path of the tree, without what is not ours to look at."""
    found: set[str] = set()
    for directory, folders, names in os.walk("/"):
        folders[:] = [f for f in folders if os.path.join(directory, f) not in NOT_OURS and f != "__pycache__"]
        found.update(os.path.join(directory, name) for name in [*folders, *names])
    return found


def unpacked_but_not_configured() -> None:
    run("dpkg", "--unpack", str(PLACE / "old.deb"))
    done = attempt("bufferzone", "list")
    expected = "bufferzone: the package is not fully installed (hint: dpkg --configure bufferzone)\n"
    check((done.returncode, done.stderr) == (1, expected), f"unpacked only: {done}")
    run("dpkg", "--purge", "bufferzone")
    told("unpacked and not configured: one line")


def current() -> str:
    return os.path.realpath(f"{VERSIONS}/current")


def installed(name: str) -> str:
    """Install from the file as a user would; the directory of the version."""
    apt("--no-install-recommends", "install", str(PLACE / name))
    for program, flag in (("bufferzone", "-v"), ("bz", "-v"), ("containerd-shim-bufferzone-v2", "-v")):
        said = run(program, flag)
        check(package_version(name).startswith(said.split()[-1 if "shim" in program else 2]), said)
    told(f"installed {name}: {package_version(name)}")
    return current()


def package_version(name: str) -> str:
    return run("dpkg-deb", "-f", str(PLACE / name), "Version")


def first_image() -> str:
    """The guest's image by the command that a start names, and a container image."""
    archive = PLACE / "busybox.tar"
    image = run("/usr/bin/python3", "-I", str(PLACE / "busybox_image.py"), str(archive))
    run("podman", "load", "--quiet", "--input", str(archive))
    done = attempt("podman", "run", "--rm", "--runtime", "bufferzone", image, "true")
    check(done.returncode != 0 and "hint: run: bz setup" in done.stderr, f"without an image: {done.stderr}")
    nothing_left("a start without a guest image")
    run("bz", "setup")
    told("guest image built by `bz setup`, as the failed start said")
    return image


def pids_of(directory: str) -> list[int]:
    """The shims that run from there: what ends by itself, like a maker of templates, is not of interest."""
    return [pid for pid, words in still_running.processes(directory) if b"serve" in words]


def upgraded_under_a_container(old: str, image: str) -> None:
    boot = run("podman", "exec", MARK, "cat", "/proc/sys/kernel/random/boot_id")
    shims = pids_of(old)
    new = installed("new.deb")
    check(new != old and os.path.isdir(old), f"the upgrade is in {new}, {old} has to stay")
    check(pids_of(old) == shims, "the container's processes did not survive the upgrade")
    again = run("podman", "exec", MARK, "cat", "/proc/sys/kernel/random/boot_id")
    check(again == boot, "exec into the older container does not reach it")
    told("upgraded under a container: it goes on, exec reaches it")
    name = f"{MARK}-new"
    run("podman", "run", "-d", "--name", name, "--runtime", "bufferzone", image, "sleep", "86400")
    check(len(pids_of(new)) > 0, "a new start does not run the new version")
    for each in (MARK, name):
        state = json.loads(run("bufferzone", "state", run("podman", "inspect", "--format", "{{.Id}}", each)))
        check(state["status"] == "running", f"state of {each}: {state}")
    run("podman", "rm", "-f", "-t", "0", name)
    told("a new start runs the new version; the new `state` and `rm` deal with both")


def another_interpreter() -> None:
    """dpkg tells us of a new /usr/bin/python3 by a trigger."""
    before = current()
    run("dpkg-trigger", "--by-package=python3-minimal", "--no-await", "/usr/bin/python3")
    run("dpkg", "--configure", "--pending")
    check(run("dpkg-query", "-W", "-f", "${db:Status-Status}", "bufferzone") == "installed", "not configured")
    check(current() == before, "the same interpreter is the same version")
    run("bufferzone", "list")
    told("a trigger for the interpreter is answered")


def removal_waits() -> None:
    done = attempt("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "remove", "bufferzone")
    lines = [line for line in done.stderr.splitlines() if line.startswith("bufferzone: ")]
    check(
        done.returncode != 0 and len(lines) == 1 and "still in use by" in lines[0], f"remove: {done.stderr}"
    )
    check(run("podman", "exec", MARK, "echo", "answer") == "answer", "the container is gone")
    run("bufferzone", "list")
    told("removing while a container runs is refused in one line, and nothing is gone")


def missing_programs(image: str) -> None:
    """What an installation without a package of ours says at a start."""
    for wanted, places in {
        "qemu-system-x86_64 (hint: apt-get install qemu-system-x86)": ["/usr/bin/qemu-system-x86_64"],
        "virtiofsd (hint: apt-get install ": [
            *("/usr/libexec/virtiofsd", "/usr/bin/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
        ],
        "passt (hint: apt-get install passt)": ["/usr/bin/passt"],
    }.items():
        hidden = [place for place in places if os.path.lexists(place)]
        check(bool(hidden), f"not there: {places}")
        for place in hidden:
            os.rename(place, f"{place}.hidden")
        os.makedirs("/etc/bufferzone", exist_ok=True)
        Path("/etc/bufferzone/config.toml").write_text('host_network = "passt"\n')
        done = attempt("podman", "run", "--rm", "--network", "host", "--runtime", "bufferzone", image, "true")
        for place in hidden:
            os.rename(f"{place}.hidden", place)
        os.unlink("/etc/bufferzone/config.toml")
        told_so = f"program not found: {wanted}" in done.stderr and "Traceback" not in done.stderr
        check(done.returncode != 0 and told_so, f"without {wanted}: {done.stderr}")
        nothing_left(f"a start without {wanted}", but=1)
    told("without QEMU, virtiofsd or passt a start fails in one line that names the package")


def nothing_left(what: str, but: int = 0) -> None:
    """No state, and no process but those of `but` containers."""
    ids = run("bufferzone", "list", "--quiet").split()
    check(len(ids) == but, f"{what} left a container: {ids}")
    names = [name for name in os.listdir("/run/bufferzone") if not name.startswith(("@", "kvm-probe"))]
    check(len(names) == but, f"{what} left: {names}")


def purged(before: set[str]) -> None:
    done = attempt("apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "purge", "bufferzone")
    still = [(pid, b" ".join(words[4:])) for pid, words in still_running.processes(VERSIONS)]
    check(done.returncode == 0, f"purge: {still}: {done.stderr}")
    left = sorted(files() - before)
    check(not left, f"left after purge: {left[:20]}")
    check(not pids_of(VERSIONS), "processes are left")
    gone = sorted(before - files())
    check(not gone, f"gone with the purge: {gone[:20]}")
    told("purged: every file and directory is as before")


if __name__ == "__main__":
    sys.exit(main())
