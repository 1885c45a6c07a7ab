"""What is asked of systemd, the machine's or the user's. Imported only where it is asked."""

from __future__ import annotations

import os

#: where systemd says that it manages the machine: sd_booted(3)
_BOOTED = "/run/systemd/system"


def is_there() -> bool:
    """Whether systemd manages this machine."""
    return os.path.isdir(_BOOTED)
