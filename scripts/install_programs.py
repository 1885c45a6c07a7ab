"""Puts the package, the three programs and Podman's drop-in in place. Installs no distribution packages.

    /usr/local/lib/bufferzone/VERSION/bufferzone/    a copy of src/bufferzone; VERSION: hash of its bytes
    /usr/local/bin/{bufferzone,bz,containerd-shim-bufferzone-v2}    five lines each, naming that VERSION
    /etc/containers/containers.conf.d/50-bufferzone.conf

`library.py` says how versions come and go. Everything appears by rename(2): no caller ever sees half of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(HERE, "scripts"))
import library  # noqa: E402

LIBRARY = "/usr/local/lib/bufferzone"
PROGRAMS = "/usr/local/bin"
CONTAINERS = "/etc/containers"
DROP_IN = "containers.conf.d/50-bufferzone.conf"

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
    sources = library.source_files(os.path.join(HERE, "src"))
    version = library.digest(sources)
    changed = library.install(LIBRARY, sources, version)
    for name, (module, call) in ENTRIES.items():
        path = os.path.join(LIBRARY, version)
        changed |= replace(f"{PROGRAMS}/{name}", PROGRAM.format(path=path, module=module, call=call), 0o755)
    changed |= install_drop_in()
    print(f"install: {'installed' if changed else 'up to date'}: {', '.join(ENTRIES)} in {PROGRAMS}")
    return 0


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
