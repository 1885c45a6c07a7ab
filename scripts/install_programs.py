"""Puts the package, the three programs and Podman's drop-in in place. Installs no distribution packages.

    /usr/local/lib/bufferzone/VERSION/bufferzone/    a copy of src/bufferzone; VERSION: hash of its bytes
    /usr/local/bin/{bufferzone,bz,containerd-shim-bufferzone-v2}    five lines each, naming that VERSION
    /etc/containers/containers.conf.d/50-bufferzone.conf

A version is never changed in place: a sandbox that runs while a new version arrives keeps importing its own,
so a few old ones stay. Everything appears by rename(2): no caller ever sees half of it.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARY = "/usr/local/lib/bufferzone"
PROGRAMS = "/usr/local/bin"
CONTAINERS = "/etc/containers"
DROP_IN = "containers.conf.d/50-bufferzone.conf"
KEEP = 5  # older versions: what still runs may import from them

#: program -> (module, call)
ENTRIES = {
    "bufferzone": ("bufferzone.cli.main", "main(sys.argv[1:])"),
    "bz": ("bufferzone.cli.bz.main", "main(sys.argv[1:])"),
    "containerd-shim-bufferzone-v2": ("bufferzone.shim.__main__", "main(sys.argv[1:])"),
}
# -I: no environment, no working directory on the path; -S: no site packages, which also halves the start.
PROGRAM = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, {path!r})
from {module} import main
sys.exit({call})
"""


def main() -> int:
    sources = source_files(os.path.join(HERE, "src"))
    version = digest(sources)
    changed = install_library(sources, version)
    for name, (module, call) in ENTRIES.items():
        path = os.path.join(LIBRARY, version)
        changed |= replace(f"{PROGRAMS}/{name}", PROGRAM.format(path=path, module=module, call=call), 0o755)
    changed |= install_drop_in()
    print(f"install: {'installed' if changed else 'up to date'}: {', '.join(ENTRIES)} in {PROGRAMS}")
    return 0


def source_files(root: str) -> dict[str, bytes]:
    """Every file of the package that is not a compiled one, by its path below `root`."""
    found: dict[str, bytes] = {}
    for directory, folders, names in os.walk(os.path.join(root, "bufferzone")):
        folders[:] = sorted(f for f in folders if f != "__pycache__")
        for name in sorted(names):
            if not name.endswith(".pyc") and not name.startswith("."):
                path = os.path.join(directory, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = file.read()
    return found


def digest(files: dict[str, bytes]) -> str:
    summary = hashlib.sha256(sys.version.encode())  # the compiled files belong to one interpreter
    for path, data in files.items():
        summary.update(f"{path}\0{len(data)}\0".encode() + data)
    return summary.hexdigest()[:16]


def install_library(files: dict[str, bytes], version: str) -> bool:
    target = os.path.join(LIBRARY, version)
    if os.path.isdir(target):
        os.utime(target)
        return False
    os.makedirs(LIBRARY, exist_ok=True)
    work = tempfile.mkdtemp(prefix=".new-", dir=LIBRARY)
    try:
        for path, data in files.items():
            os.makedirs(os.path.dirname(os.path.join(work, path)), exist_ok=True)
            with open(os.path.join(work, path), "wb") as file:
                file.write(data)
        # Unchecked: root owns both files and they never change, so no user's verb may find them stale and
        # compile them anew at every start because it cannot write the result.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        if not compileall.compile_dir(
            work, stripdir=work, prependdir=target, quiet=1, invalidation_mode=mode
        ):
            raise SystemExit("install: the package does not compile")
        make_readable(work)
        os.rename(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    remove_old(version)
    return True


def make_readable(tree: str) -> None:
    """Whatever root's umask is, everybody may read and only root write."""
    for directory, _, names in os.walk(tree):
        os.chmod(directory, 0o755)
        for name in names:
            os.chmod(os.path.join(directory, name), 0o644)


def remove_old(current: str) -> None:
    with os.scandir(LIBRARY) as entries:
        rows = [(e.stat().st_mtime, e.name) for e in entries if e.is_dir() and e.name != current]
    for _, name in sorted(rows)[:-KEEP]:
        shutil.rmtree(os.path.join(LIBRARY, name), ignore_errors=True)


def replace(path: str, text: str, mode: int) -> bool:
    """Write a file by rename; false when it already is what it should be."""
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text and os.stat(path).st_mode & 0o777 == mode:
                return False
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd, new = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    os.rename(new, path)
    return True


def install_drop_in() -> bool:
    """Podman's drop-in. One that somebody changed stays, and is named: ours goes beside it."""
    target, record = f"{CONTAINERS}/{DROP_IN}", f"{LIBRARY}/drop-in.json"
    with open(os.path.join(HERE, "config", DROP_IN), encoding="utf-8") as file:
        ours = file.read()
    try:
        with open(target, encoding="utf-8") as file:
            present = file.read()
    except FileNotFoundError:
        present = None
    if present not in (None, ours) and sha256(present) != recorded(record):
        print(f"install: left alone, because it was changed: {target}; ours: {target}.new", file=sys.stderr)
        return replace(f"{target}.new", ours, 0o644)
    replace(record, json.dumps({"sha256": sha256(ours)}) + "\n", 0o644)
    return replace(target, ours, 0o644)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def recorded(path: str) -> str:
    """The hash of the drop-in that we wrote last, empty when we never did."""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file)["sha256"])
    except (OSError, ValueError, KeyError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
