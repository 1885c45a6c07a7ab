"""What an image asks for, put into a wish where the person did not say it, as Docker merges the two: pure.

An anonymous volume is a part of the root file system, which lives as long; where that is read-only it is an
empty one in memory. A health check is not run. Source: Dockerfile reference, OCI image-spec conversion.md.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.workload.wish import Wish

#: where Podman and the OCI's conversion of images put it as well
STOP_SIGNAL = "org.opencontainers.image.stopSignal"
NAME = "org.opencontainers.image.ref.name"


def fill(wish: Wish, *, own_entrypoint: bool = False) -> None:
    """Change `wish`, whose `image` is set. `own_entrypoint`: its args begin with the person's own.
    One that is idle has no args.
    """
    image = wish.image
    assert image is not None
    asked = image.config
    if not own_entrypoint and not wish.idle:
        wish.args = [*asked.entrypoint, *(wish.args or asked.cmd)]
    own = {word.partition("=")[0] for word in wish.env}
    wish.env = [*(word for word in asked.env if word.partition("=")[0] not in own), *wish.env]
    wish.user = wish.user or asked.user
    wish.cwd = wish.cwd or (asked.workdir if asked.workdir.startswith("/") else "")
    wish.annotations.setdefault(NAME, image.name or image.reference)
    if asked.stop_signal:
        wish.annotations.setdefault(STOP_SIGNAL, asked.stop_signal)
    if wish.read_only:
        _add_volumes(wish, asked.volumes)


def _add_volumes(wish: Wish, volumes: tuple[str, ...]) -> None:
    taken = {str(entry["destination"]).rstrip("/") for entry in wish.mounts}
    for path in volumes:
        if path.startswith("/") and path.rstrip("/") not in ("", *taken):
            options = ["nosuid", "nodev", "mode=755"]
            entry = {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}
            wish.mounts.append(entry)
