"""Proves the Debian package in a Debian tree: install, a container, an upgrade under it, removal, purge.

    package_check.py RELEASE [TREE]     see scripts/package --check; TREE is made where it is missing

What the tree has is told here; what is done in it is in scripts/package_check_inside.py, which runs in
namespaces of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import package_deb  # noqa: E402
from apt_sources import RELEASES  # noqa: E402

#: how this machine reaches its packages, as far as it is files
_COPIED = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs", "/usr/local/share/ca-certificates")
_PLACE = "root/package"  # in the tree
_NEXT = "0.1.999"  # the version of the second package


def main() -> int:
    release, *places = sys.argv[1:] or [""]
    if release not in RELEASES:
        print(f"package: unknown release: {release} (one of: {', '.join(RELEASES)})", file=sys.stderr)
        return 2
    if os.geteuid() != 0 or not shutil.which("mmdebstrap"):
        print("package: --check needs root and mmdebstrap (apt-get install mmdebstrap)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bufferzone-package-", dir="/var/tmp") as work:
        tree = os.path.abspath(places[0]) if places else os.path.join(work, "tree")
        if not os.path.isdir(tree):
            print(f"package: making a tree of {RELEASES[release]}", flush=True)
            make_tree(release, tree, work)
        put_packages(os.path.join(tree, _PLACE), work)
        inside = ["/usr/bin/python3", "-I", f"/{_PLACE}/package_check_inside.py", f"/{_PLACE}"]
        return subprocess.run([f"{HERE}/in_tree", tree, *inside], stdin=subprocess.DEVNULL).returncode


def make_tree(release: str, tree: str, work: str) -> None:
    """Debian with Python and nothing else, that reaches packages as this machine does."""
    sources = os.path.join(work, "debian.sources")
    with open(sources, "w", encoding="utf-8") as file:
        script = [sys.executable, "-I", f"{HERE}/apt_sources.py", release]
        subprocess.run(script, stdout=file, check=True)
    options = []
    for name in sorted(os.listdir("/etc/apt/apt.conf.d")):
        with open(f"/etc/apt/apt.conf.d/{name}", encoding="utf-8", errors="replace") as file:
            if any(line.lstrip().startswith("Acquire") for line in file):
                options.append(f"--aptopt=/etc/apt/apt.conf.d/{name}")
    argv = ["mmdebstrap", "--quiet", "--variant=apt", "--include=python3,ca-certificates", *options]
    subprocess.run([*argv, release, tree, sources], stdin=subprocess.DEVNULL, check=True)
    for path in filter(os.path.exists, _COPIED):
        target = tree + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            shutil.rmtree(target, ignore_errors=True)  # its links are absolute
            shutil.copytree(path, target)
        else:
            shutil.copy(path, target)


def put_packages(place: str, work: str) -> None:
    """This checkout's package as old.deb, the next version's as new.deb, and what the checks need."""
    os.makedirs(place, exist_ok=True)
    shutil.move(package_deb.build(work), os.path.join(place, "old.deb"))
    later = os.path.join(work, "later")
    for name in ("src", "scripts", "config", "docs"):
        shutil.copytree(
            os.path.join(HERE, "..", name), f"{later}/{name}", ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("README.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copy(os.path.join(HERE, "..", name), later)
    init = f"{later}/src/bufferzone/__init__.py"
    with open(init, encoding="utf-8") as file:
        text = file.read()
    with open(init, "w", encoding="utf-8") as file:
        file.write(text.replace(package_deb.__version__, _NEXT))
    script = [sys.executable, "-I", f"{later}/scripts/package_deb.py", work]
    made = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    shutil.move(made, os.path.join(place, "new.deb"))
    for name in ("package_check_inside.py", "still_running.py", "busybox_image.py"):
        shutil.copy(f"{HERE}/{name}", place)


if __name__ == "__main__":
    sys.exit(main())
