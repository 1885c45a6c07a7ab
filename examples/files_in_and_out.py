"""How do I give a sandbox files, and get its own back?

`sb.files` writes, reads and lists, copies trees in and out, and tells what changes. No directory is shared.

    examples/files_in_and_out.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import bufferzone

COUNT = """
import pathlib
for path in sorted(pathlib.Path("/srv/in").rglob("*.txt")):
    out = pathlib.Path("/srv/out", path.name)
    out.write_text(f"{len(path.read_text().split())} words\\n")
"""


def main(directory: Path) -> None:
    """Count the words of two files in a sandbox; `directory` is where they are made here."""
    (directory / "in/letters").mkdir(parents=True)
    (directory / "in/poem.txt").write_text("roses are red\n")
    (directory / "in/letters/first.txt").write_text("dear reader\n")
    with bufferzone.Sandbox(memory_mib=256) as sb:
        sb.files.copy_in(directory / "in", "/srv/in")
        sb.files.write("/srv/count.py", COUNT)
        sb.files.mkdir("/srv/out")
        sb.run(["python3", "-I", "/srv/count.py"], timeout_s=60)
        for file in sb.files.list("/srv/out"):
            print(f"{file.name}, {file.size} bytes: {sb.files.read_text(f'/srv/out/{file.name}').strip()}")
        sb.files.copy_out("/srv/out", directory / "out")
        try:
            sb.files.read("/srv/out/missing.txt")
        except bufferzone.FileError as error:
            print(f"refused: {error.code}")
    print("copied out:", *sorted(path.name for path in (directory / "out").iterdir()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
