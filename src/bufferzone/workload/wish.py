"""What a person asks to run, as plain values: the noun that `bz run` and the library both fill in."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from bufferzone.images.fetch import Image

NETWORKS = ("passt", "none")


class Wish:
    """One sandbox with one process. Nothing is checked here; `config_json` and `oci.validate` do that.

    `args`: the command; `idle`: none, its process 1 waits until somebody ends it. `image`: what its root file
    system is made of (`images.fetch.get`); what that asks for is in the wish once `from_image.fill` has put
    it there. `disk`: it is packed into a disk, so that the sandbox can be saved. `rootfs`: a directory
    instead, of which nothing is changed, and always such a disk. Neither: the host's programs, see
    `host_root`. `egress`: rules, see docs/egress.md, None: those of the settings. `env`: K=V. `cwd` and
    `user` (NAME|UID[:GROUP|GID]) empty: the root's own. `mounts`: entries as config.json has them.
    `memory_bytes`, `cpus`: limits, 0: none. `cap_add`, `cap_drop`: names with or without CAP_, or ALL.
    `ulimits`: name -> (soft, hard). `network`: one of `NETWORKS`. `publish`:
    [ADDRESS:]HOST:GUEST[/tcp|udp]. `annotations`: those of the container, labels among them. `inside`: the
    container whose sandbox it is one more in, with that one's `network`; empty: one of its own.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        env: Sequence[str] = (),
        cwd: str = "",
        user: str = "",
        hostname: str = "",
        mounts: Sequence[dict[str, Any]] = (),
        memory_bytes: int = 0,
        cpus: float = 0.0,
        pids: int = 0,
        network: str = "passt",
        publish: Sequence[str] = (),
        read_only: bool = False,
        cap_add: Sequence[str] = (),
        cap_drop: Sequence[str] = (),
        init: bool = False,
        ulimits: Mapping[str, tuple[int, int]] | None = None,
        annotations: Mapping[str, str] | None = None,
        terminal: bool = False,
        idle: bool = False,
        rootfs: str = "",
        image: Image | None = None,
        disk: bool = False,
        egress: Sequence[str] | None = None,
        inside: str = "",
    ) -> None:
        self.idle, self.rootfs, self.image, self.disk = idle, rootfs, image, disk
        self.inside = inside
        self.egress = None if egress is None else list(egress)
        self.args, self.env, self.cwd, self.user = list(args), list(env), cwd, user
        self.hostname, self.mounts = hostname, list(mounts)
        self.memory_bytes, self.cpus, self.pids = memory_bytes, cpus, pids
        self.network, self.publish = network, list(publish)
        self.read_only, self.init, self.terminal = read_only, init, terminal
        self.cap_add, self.cap_drop = list(cap_add), list(cap_drop)
        self.ulimits, self.annotations = dict(ulimits or {}), dict(annotations or {})
