"""What a person asks to run, as plain values: the noun that `bz run` and the library both fill in."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

NETWORKS = ("passt", "none")


class Wish:
    """One sandbox with one process. Nothing is checked here; `config_json` and `oci.validate` do that.

    `args`: the command; `idle`: none, its process 1 waits until somebody ends it. `rootfs`: a directory that
    becomes the root file system, of which nothing is changed; empty: the host's programs, see `host_root`.
    `egress`: rules, see docs/egress.md, None: those of the settings. `env`: K=V. `cwd` and `user`
    (NAME|UID[:GROUP|GID]) empty: the root's own. `mounts`: entries as config.json has them.
    `memory_bytes`, `cpus`: limits, 0: none. `cap_add`, `cap_drop`: names with or without CAP_, or ALL.
    `ulimits`: name -> (soft, hard). `network`: one of `NETWORKS`. `publish`:
    [ADDRESS:]HOST:GUEST[/tcp|udp]. `annotations`: those of the container, labels among them.
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
        egress: Sequence[str] | None = None,
    ) -> None:
        self.idle, self.rootfs = idle, rootfs
        self.egress = None if egress is None else list(egress)
        self.args, self.env, self.cwd, self.user = list(args), list(env), cwd, user
        self.hostname, self.mounts = hostname, list(mounts)
        self.memory_bytes, self.cpus, self.pids = memory_bytes, cpus, pids
        self.network, self.publish = network, list(publish)
        self.read_only, self.init, self.terminal = read_only, init, terminal
        self.cap_add, self.cap_drop = list(cap_add), list(cap_drop)
        self.ulimits, self.annotations = dict(ulimits or {}), dict(annotations or {})
