"""How `run` and `pull` fetch an image and show it: bars on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import os

from bufferzone.cli.flags import Flag
from bufferzone.images import fetch
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.cli.flags import Options

TLS = Flag("tls-verify", "", "false: the registry may speak HTTP; one on this machine may in any case")
FLAGS = (
    Flag("pull", "missing|always|never", "when to fetch the image", kind="choice", default="missing"),
    Flag("quiet q", "", "no progress of pulling the image"),
    TLS,
)


def get(options: Options, text: str, *, pull: str) -> fetch.Image:
    """The image, pulled where that policy says so."""
    verify = options.tls_verify if "tls_verify" in options.given else None
    terminal = 2 if os.isatty(2) and not options.quiet else -1
    lines = _forget if options.quiet else _tell
    return fetch.get(text, pull=pull, report=fetch.Report(lines, terminal=terminal), tls_verify=verify)


def _tell(line: str) -> None:
    os.write(2, f"bz: {shown(line)}\n".encode())


def _forget(line: str) -> None:
    pass
