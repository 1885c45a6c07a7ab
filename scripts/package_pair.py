"""Two Debian packages for `scripts/package --check`: this checkout's, and the same as a later version.

package_pair.py PLACE     makes PLACE/old.deb and PLACE/new.deb
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

_LATER = "0.1.999"
_INPUTS = ("src", "scripts", "config", "docs", "README.md", "SECURITY.md", "CHANGELOG.md")


def main() -> int:
    (place,) = sys.argv[1:]
    os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bufferzone-package-") as work:
        shutil.move(package_deb.build(work), os.path.join(place, "old.deb"))
        later = os.path.join(work, "later")
        os.mkdir(later)
        for name in _INPUTS:
            copy(os.path.join(HERE, "..", name), os.path.join(later, name))
        init = f"{later}/src/bufferzone/__init__.py"
        with open(init, encoding="utf-8") as file:
            text = file.read()
        with open(init, "w", encoding="utf-8") as file:
            file.write(text.replace(package_deb.__version__, _LATER))
        script = [sys.executable, "-I", f"{later}/scripts/package_deb.py", work]
        made = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        shutil.move(made, os.path.join(place, "new.deb"))
    return 0


def copy(source: str, target: str) -> None:
    """A file, or a tree without what is compiled."""
    if os.path.isdir(source):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main())
