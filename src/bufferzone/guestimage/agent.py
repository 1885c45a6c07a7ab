"""What of our own code goes into the guest: `guest/` and what it stands on. Host code never does."""

from __future__ import annotations

import hashlib
import os

from bufferzone.errors import HostError

#: below src/bufferzone; a directory means every .py file in it
PARTS = ("__init__.py", "errors.py", "record.py", "container", "guest", "linux", "wire")
#: of what is in them, what a VM has no use for
_LEFT_OUT = ("guest/hosted.py",)
ROOT = "/usr/lib/bufferzone"  # on the guest's sys.path, so the package is ROOT/bufferzone

#: the guest's modprobe; /init links it to where the kernel looks, CONFIG_MODPROBE_PATH. Were it there at the
#: start, the kernel's own initialization would run it for ciphers and protocols: measured, 650 ms under TCG
MODPROBE = f"{ROOT}/modprobe"

#: -I: no environment, no current directory; -S: no site; -B: never write byte code
INIT = f"""#!/usr/bin/python3 -ISB
import sys
sys.path.append("{ROOT}")
from bufferzone.guest.__main__ import main
main()
""".encode()
INIT_WITH_MODULES = INIT.replace(
    b"import sys\n", f'import os, sys\nos.symlink("{MODPROBE}", "/usr/sbin/modprobe")\n'.encode()
)


def package_directory() -> str:
    """Where the running bufferzone package lies on the host."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def sources(package: str) -> dict[str, bytes]:
    """Guest path -> text of every source file for the image; raises `HostError` when one is missing."""
    found: dict[str, bytes] = {}
    for part in PARTS:
        path = os.path.join(package, part)
        if part.endswith(".py"):
            found[f"{ROOT}/bufferzone/{part}"] = _read(path)
            continue
        for directory, _, names in os.walk(path):
            inner = os.path.relpath(directory, package)
            for name in names:
                if name.endswith(".py") and f"{inner}/{name}" not in _LEFT_OUT:
                    found[f"{ROOT}/bufferzone/{inner}/{name}"] = _read(os.path.join(directory, name))
    if f"{ROOT}/bufferzone/guest/__main__.py" not in found:
        raise HostError(f"the agent is not in {package}", hint="reinstall bufferzone", code="agent-missing")
    return dict(sorted(found.items()))


def modprobe() -> bytes:
    """The text of the guest's /sbin/modprobe."""
    return _read(os.path.join(os.path.dirname(os.path.abspath(__file__)), "modprobe.py"))


def hash_of(files: dict[str, bytes]) -> str:
    """One SHA-256 over names and contents."""
    total = hashlib.sha256()
    for name, text in sorted(files.items()):
        total.update(f"{name}\0{len(text)}\0".encode() + text)
    return total.hexdigest()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        hint = "reinstall bufferzone"
        raise HostError(f"cannot read {path}: {error.strerror}", hint=hint, code="agent-missing") from error
