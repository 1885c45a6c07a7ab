"""`bz ps`: the containers of this machine, whoever started them, with what runs them as the shim recorded it,
and what their egress policies denied."""

from __future__ import annotations

import json

from bufferzone import state
from bufferzone.cli import output
from bufferzone.cli.bz import roots
from bufferzone.cli.flags import Flag, ignored
from bufferzone.client.connection import Client
from bufferzone.errors import BufferzoneError
from bufferzone.wire import shim
from bufferzone.wire.proto import Empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("quiet q", "", "ids alone"),
    Flag("json", "", "as JSON"),
    ignored("all a", "", "those that have ended are shown in any case"),
)
USAGE = "[options]"
DESCRIPTION = (
    "Those of this user, whoever started them: bz, Podman, a Python program; for root also those of\n"
    "containerd and Docker, which are in a namespace of containerd's (Docker's is moby). SANDBOX is the\n"
    "one in whose VM a container is, where it has none of its own."
)
WORDS = (0, 0)
INTERSPERSED = True

_ANSWER_S = 5.0
_RECORDED = ("vmm", "accelerator", "start", "guest-kernel", "sandbox")
_SHOWN = (
    *("id", "status", "vmm", "accelerator", "start", "guest_kernel"),
    *("egress_denied", "created", "namespace", "sandbox"),
)


def run(options: Options, words: list[str]) -> int:
    """Print them."""
    found = [_form(*container) for container in roots.containers(options.root)]
    if options.json:
        output.print_text(json.dumps(found, indent=2) + "\n")
    elif options.quiet:
        output.print_text("".join(f"{form['id']}\n" for form in found))
    else:
        heads = "ID,STATUS,VMM,ACCELERATOR,START,GUEST KERNEL,DENIED,CREATED,NAMESPACE,SANDBOX"
        rows = [heads.split(","), *([form[key] or "-" for key in _SHOWN] for form in found)]
        output.print_table(rows)
    return 0


def _form(root: str, directory: str, found: dict[str, Any]) -> dict[str, str]:
    """One as JSON has it; what nobody knows is empty."""
    recorded = {
        name.replace("-", "_"): str(found["annotations"].get(f"bufferzone.{name}", "")) for name in _RECORDED
    }
    return {
        "id": str(found["id"]),
        "status": str(found["status"]),
        **recorded,
        "egress_denied": _denied(directory, found),
        "created": str(found["created"]),
        "namespace": roots.namespace(root),
        "bundle": str(found["bundle"]),
    }


def _denied(directory: str, found: dict[str, Any]) -> str:
    """Packets denied: what the shim says now, else what it recorded last; empty without a policy."""
    recorded = str(found["annotations"].get("bufferzone.egress-denied", ""))
    if not recorded or found["status"] == state.STOPPED:
        return recorded
    try:
        with Client.connect(directory) as client:
            answer = client.call("Info", Empty(), service=shim.SERVICE, timeout_s=_ANSWER_S)
        return str(json.loads(answer.json)["egress_denied"])
    except BufferzoneError:
        return recorded
