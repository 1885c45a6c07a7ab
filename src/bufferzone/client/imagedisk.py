"""Has an image packed into one file, by the shim's program: see `sandbox.imagedisk`."""

from __future__ import annotations

import subprocess

from bufferzone import jsontext, programs, state
from bufferzone.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: bytes; a disk of a VM has no more
_MOST = 64 << 30


def pack(path: str, *, source: str = "", options: Sequence[str] = (), at: str = "", shim: str = "") -> None:
    """Make the EROFS file `path` of the directory `source`, or of an overlay with these mount options, for
    which `at` is an empty directory. Raises `HostError`; then there is no such file.
    """
    order = {
        "path": path,
        "source": source,
        "options": list(options),
        "at": at,
        "most": _MOST,
        "run_directory": state.lease_root(),
    }
    done = subprocess.run(
        programs.argv("shim", "pack", program=shim),
        input=jsontext.dumps(order).encode(),
        capture_output=True,
        env=programs.ENVIRONMENT,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").splitlines() or ["it wrote nothing"]
        said = lines[-1].removeprefix("containerd-shim-bufferzone-v2: ")
        raise HostError(f"cannot make a disk of the image: {said}", code="pack")
