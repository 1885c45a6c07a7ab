"""`bz template`: what VMs are restored from. They come and go by themselves; this is for looking and for
making one ahead of the first start.
"""

from __future__ import annotations

import time

from bufferzone import config, state
from bufferzone.cli import output
from bufferzone.cli.flags import Flag
from bufferzone.errors import HostError, NotFoundError, UsageError
from bufferzone.setting import fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options

FLAGS = (
    Flag("vcpus", "N", "make: CPUs of the VM, in place of the settings'", kind="int"),
    Flag("memory", "MIB", "make: memory of the VM in MiB, in place of the settings'", kind="int"),
    Flag("all a", "", "prune: remove every template"),
    Flag("json", "", "ls: as JSON"),
)
USAGE = "[options] ls | make | rm KEY... | prune"
DESCRIPTION = (
    "A template is a VM saved before its first container: one per image, QEMU, CPU count and memory size. "
    "It is made in the background after a first cold boot. ls shows them, make makes one now, rm and prune "
    "remove them: running containers are not touched."
)
WORDS = (1, 1000)
INTERSPERSED = True

_KEY_SHOWN = 12
#: flag -> the one action that has it; the others are make's
_ACTIONS = {"all": "prune", "json": "ls"}


def run(options: Options, words: list[str]) -> int:
    """Do what the first word says."""
    actions: dict[str, Any] = {"ls": _list, "make": _make, "rm": _remove, "prune": _prune}
    if words[0] not in actions:
        raise UsageError(f"no such action: {words[0]!a}", hint="ls, make, rm or prune")
    if words[0] != "rm" and len(words) > 1:
        raise UsageError(f"bz template {words[0]} takes no arguments: {words[1]!a}")
    for name in sorted(options.given):
        action = _ACTIONS.get(name, "make")
        if words[0] != action:
            raise UsageError(f"bz template {words[0]} has no --{name}", hint=f"bz template {action} has")
    try:
        actions[words[0]](options, words[1:])
    except OSError as error:
        reason = f"{error.strerror}: {error.filename or _store()}"
        raise HostError(f"cannot use the store of templates: {reason}", code="template-store") from error
    return 0


def _store() -> str:
    from bufferzone.guestimage import template_store

    return template_store.default_store(config.load().image_store)


def _list(options: Options, words: list[str]) -> None:
    from bufferzone.guestimage import template_store

    found = template_store.listing(_store())
    if options.json:
        import json

        output.print_text(json.dumps(found, indent=2) + "\n")
        return
    rows = [["KEY", "IMAGE", "ACCELERATOR", "VCPUS", "MEMORY", "SIZE", "MADE", "USED"]]
    now = time.time()
    for row in found:
        shape = [str(row.get("image", ""))[:12], str(row.get("accelerator", ""))]
        if row.get("damaged"):
            shape = ["(damaged)", ""]
        rows.append(
            [
                row["key"][:_KEY_SHOWN],
                *shape,
                str(row.get("vcpus", "")),
                f"{row['memory_mib']} MiB" if "memory_mib" in row else "",
                f"{row['bytes'] / 1e6:.0f} MB",
                _ago(now - row["made_at"]) if "made_at" in row else "",
                _ago(now - row["used_ns"] / 1e9),
            ]
        )
    output.print_table(rows)


def _ago(seconds: float) -> str:
    """A time span for people: one number, one unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} seconds ago"


def _make(options: Options, words: list[str]) -> None:
    from bufferzone.client import template

    for name, key in (("vcpus", "vcpus"), ("memory", "memory_mib")):
        reason = fault(config.ROWS[key], getattr(options, name))
        if name in options.given and reason:
            raise UsageError(f"--{name}: {reason}")
    root = state.runtime_root(options.root)
    template.make(root, vcpus=options.vcpus, memory_mib=options.memory)


def _remove(options: Options, words: list[str]) -> None:
    """By key or by an unambiguous beginning of one."""
    from bufferzone.guestimage import template_store

    if not words:
        raise UsageError("bz template rm needs a KEY", hint="bz template ls shows them")
    store = _store()
    known = [row["key"] for row in template_store.listing(store)]
    chosen = [_key(word, known) for word in words]
    for key in chosen:
        template_store.remove(store, key)


def _key(word: str, known: list[str]) -> str:
    found = [key for key in known if word and key.startswith(word)]
    if len(found) != 1:
        raise NotFoundError(f"{'no' if not found else 'more than one'} such template: {word!a}")
    return found[0]


def _prune(options: Options, words: list[str]) -> None:
    from bufferzone.guestimage import template_store

    keep, most = (0, 0) if options.all else (template_store.KEEP, template_store.MOST_BYTES)
    for key in template_store.prune(_store(), keep=keep, most_bytes=most):
        output.print_text(f"removed {key}\n")
