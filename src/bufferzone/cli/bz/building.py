"""How the building of the guest image is shown where a command has to begin with it."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def progress() -> Callable[[str], None]:
    """Steps of building the guest image, with their times, on stderr."""
    start = time.monotonic()

    def tell(line: str) -> None:
        os.write(2, f"bz: guest image: {time.monotonic() - start:6.1f} s  {line}\n".encode())

    return tell
