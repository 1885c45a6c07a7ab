"""Versions of the package side by side: how an installer puts one in place, and which the commands take.

    PLACE/VERSION/bufferzone/    a copy of src/bufferzone, compiled; VERSION: hash of its bytes
    PLACE/current                a link to the VERSION that new commands run (the Debian package's programs)

A version is never changed in place: a sandbox that runs while a new version arrives keeps importing its own,
so a few old ones stay. Everything appears by rename(2): no caller ever sees half of it.

    library.py SOURCE PLACE      for the Debian package: install what lies below SOURCE, make it current
"""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import shutil
import sys
import tempfile

KEEP = 5  # older versions: what still runs may import from them
CURRENT = "current"


def main() -> int:
    source, place = sys.argv[1:]
    files = source_files(source)
    version = digest(files)
    install(place, files, version)
    make_current(place, version)
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
    """The name of a version."""
    summary = hashlib.sha256(sys.version.encode())  # the compiled files belong to one interpreter
    for path, data in files.items():
        summary.update(f"{path}\0{len(data)}\0".encode() + data)
    return summary.hexdigest()[:16]


def install(place: str, files: dict[str, bytes], version: str) -> bool:
    """Put the version in place and remove old ones; false when it was there. `SystemExit` if it does not
    compile; then nothing has changed.
    """
    target = os.path.join(place, version)
    if os.path.isdir(target):
        os.utime(target)
        return False
    os.makedirs(place, exist_ok=True)
    work = tempfile.mkdtemp(prefix=".new-", dir=place)
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
    remove_old(place, version)
    return True


def make_readable(tree: str) -> None:
    """Whatever root's umask is, everybody may read and only root write."""
    for directory, _, names in os.walk(tree):
        os.chmod(directory, 0o755)
        for name in names:
            os.chmod(os.path.join(directory, name), 0o644)


def remove_old(place: str, current: str) -> None:
    """Keep the newest few beside the current one."""
    with os.scandir(place) as entries:
        rows = [
            (e.stat().st_mtime, e.name)
            for e in entries
            if e.is_dir(follow_symlinks=False) and e.name != current
        ]
    for _, name in sorted(rows)[:-KEEP]:
        shutil.rmtree(os.path.join(place, name), ignore_errors=True)


def make_current(place: str, version: str) -> None:
    """Commands that begin from now on run this version."""
    new = os.path.join(place, ".new-current")
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(version, new)
    os.rename(new, os.path.join(place, CURRENT))


if __name__ == "__main__":
    sys.exit(main())
