"""Saving a stopped VM and loading it into a fresh QEMU, over the control channel.

Guest memory lies in a shared file that is not part of the stream (x-ignore-shared): the stream holds the
devices. A vhost-user device cannot be in it on QEMU 7.2 ("non-migratable device"), so shares are plugged
after loading, before the guest runs. Source: QEMU 7.2 docs/devel/migration.rst, qapi/migration.json.
"""

from __future__ import annotations

import select
from contextlib import contextmanager

from bufferzone.errors import VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bufferzone.model import Share
    from bufferzone.vmm.driver import Vmm

_CAPABILITIES = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
_TRIES = 20_000
#: what the guest keeps while its balloon is full: enough that nothing there fails to allocate
_KEPT_FREE = 24 << 20
_BALLOON_TRIES = 50


@contextmanager
def squeezed(vmm: Vmm, *, memory: int, free: int) -> Iterator[None]:
    """Take `free` bytes of the guest's `memory` out of the memory file: the balloon is full in the block.

    Page reporting would do it by itself, but in blocks of 2 MiB and a sixteenth of them every two seconds.
    A guest that takes too long gets its memory back early. Raises `VmmError`.
    """
    wanted = memory - max(0, free - _KEPT_FREE)
    vmm.qmp.execute("balloon", {"value": wanted})
    _await_balloon(vmm, wanted)
    yield
    vmm.qmp.execute("balloon", {"value": memory})
    _await_balloon(vmm, memory)


def _await_balloon(vmm: Vmm, target: int) -> None:
    """Wait until the balloon has reached `target`, or has not moved for a while."""
    before, still = -1, 0
    while still < _BALLOON_TRIES:
        actual = vmm.qmp.execute("query-balloon").get("actual")
        if actual == target:
            return
        before, still = (actual, still + 1) if actual == before else (actual, 0)
        select.select([], [], [], 0.02)


def save(vmm: Vmm, state_fd: int) -> None:
    """Stop the guest and write its devices to `state_fd`; the memory file holds the rest. Raises
    `VmmError`.
    """
    vmm.qmp.execute("stop")
    vmm.qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    vmm.qmp.send_descriptor("state", state_fd)
    vmm.qmp.execute("migrate", {"uri": "fd:state"})
    _await_migration(vmm, "save the template")


def load(vmm: Vmm, state_fd: int) -> None:
    """Load devices from `state_fd` into a QEMU that was started to be restored; it does not run yet."""
    vmm.qmp.execute("migrate-set-capabilities", _CAPABILITIES)
    # a NIC that was moved would tell its network of its MAC, which here is a template's
    vmm.qmp.execute("migrate-set-parameters", {"announce-rounds": 0})
    vmm.qmp.send_descriptor("state", state_fd)
    vmm.qmp.execute("migrate-incoming", {"uri": "fd:state"})
    _await_migration(vmm, "restore from the template")


def plug_share(vmm: Vmm, share: Share, port: str) -> None:
    """Plug a share, whose character device is there from the start, into the free root port `port`."""
    device = {
        "driver": "vhost-user-fs-pci",
        "chardev": f"share{share.fd}",
        "tag": share.tag,
        "queue-size": 1024,
    }
    vmm.qmp.execute("device_add", {**device, "id": f"fs{share.fd}", "bus": port})


def resume(vmm: Vmm) -> None:
    """Let the guest run."""
    vmm.qmp.execute("cont")


def _await_migration(vmm: Vmm, phase: str) -> None:
    """Both directions take single milliseconds: asking again beats an event and its set-up."""
    for _ in range(_TRIES):
        status = vmm.qmp.execute("query-migrate").get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            break
        select.select([], [], [], 0.0005)
    raise VmmError(
        f"QEMU could not {phase}: {'; '.join(vmm.stderr_tail(3)) or status}", code="template-refused"
    )
