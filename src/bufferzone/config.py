"""The settings as one table, read from TOML files.

    /etc/bufferzone/config.toml, /etc/bufferzone/config.d/*.toml
    ~/.config/bufferzone/config.toml, for everybody but root

Later files win. An unknown key, a wrong type or a value out of range is an error that names file and key.
A key with a dot is one of a TOML table: `pool.size`, or `size` below `[pool]`.
What a bundle may change about them is in `oci.overrides`: the table's annotation column says what.
"""

from __future__ import annotations

import os

from bufferzone import egress, weaker
from bufferzone.errors import HostError
from bufferzone.linux import identity
from bufferzone.setting import Setting, fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

DIRECTORY = "/etc/bufferzone"
#: see `read_also`: where it is said -> the text, None for a file, and the keys that say nothing
_also: dict[str, tuple[str | None, frozenset[str]]] = {}

#: what a setting decides. VM: what a VM is, from its start to its end. ORIGIN: where a VM comes from, nothing
#: of one that runs. GATE: what the containers of a VM may reach, set with the first. HOST: nothing of a VM
VM, ORIGIN, GATE, HOST = "vm", "origin", "gate", "host"

#: all alike: 0 is no limit, and an annotation may only be less
_RATES = {
    "disk_kib_per_s": "KiB a second that a VM may read from its disk; 0: no limit; an annotation may only be "
    "less; refused where something is shared, which is not read from there",
    "disk_ops_per_s": "requests a second to its disk; else as `disk_kib_per_s`",
    "network_kib_per_s": "KiB a second that a VM may receive, and may send; 0: no limit; an annotation may "
    "only be less; Firecracker alone keeps it",
}
#: all alike: the most that is allowed, 0 is for the machine to say
_ALLOWED = {
    "annotation_vcpus": (
        64,
        "CPUs that an annotation may ask for, which may be an image's; 0: all that the host has",
    ),
    "annotation_memory_mib": (
        1 << 20,
        "memory in MiB that an annotation may ask for; 0: half of what the host has",
    ),
}
_CACHE = (
    "MiB of disk for images of root file systems that are overlays, packed once for all containers of the "
    "same layers, see block-rootfs.md; the least recently used go; 0: none is kept"
)
TABLE: tuple[Setting, ...] = (
    Setting(
        "vcpus",
        "int",
        VM,
        0,
        "CPUs of a VM; not set: as many as the container's CPU quota and cpuset allow, 1 without a limit",
        limits=(1, 64),
        annotation="vcpus",
        open=True,
    ),
    Setting(
        "memory_mib",
        "int",
        VM,
        512,
        "memory of a VM in MiB; where the container's limit and 192 MiB do not fit, the next of 768, 1024, "
        "1536, 2048, 3072, ...; an annotation may have a unit: `1GiB`",
        limits=(128, 1 << 20),
        annotation="memory",
        open=True,
    ),
    Setting(
        "kvm",
        "str",
        VM,
        "warn",
        "without usable KVM: `require` refuses, `warn` says so in the shim's log, `allow` is silent; "
        "an annotation may only be stricter",
        choices=weaker.KVM_POLICIES,
        annotation="kvm",
        open=True,
        weaker=weaker.kvm,
    ),
    Setting(
        "accelerator",
        "str",
        VM,
        "auto",
        "what runs the guest's instructions; an annotation may choose `tcg` on request only",
        choices=("auto", "kvm", "tcg"),
        annotation="accelerator",
        open=True,
        weaker=weaker.accelerator,
        by_request=True,
    ),
    Setting(
        "guest",
        "str",
        VM,
        "auto",
        "`stock`: the distribution's kernel; `lean`: our own, which `bz setup --guest lean` compiles once; "
        "`auto`: the lean one where it has been built",
        choices=("auto", "stock", "lean"),
        annotation="guest",
    ),
    Setting(
        "image",
        "str",
        VM,
        "",
        "guest image: directory or digest; not set: that of this version and `guest`",
        annotation="image",
    ),
    Setting("kernel", "path", VM, "", "kernel in place of the image's own", annotation="kernel"),
    Setting("initrd", "path", VM, "", "initrd in place of the image's own", annotation="initrd"),
    Setting("kernel_arguments", "list", VM, [], "more kernel arguments", annotation="kernel_arguments"),
    Setting(
        "vmm",
        "str",
        VM,
        "qemu",
        "what runs a VM; firecracker: with KVM alone, root file systems on a disk, no volumes, its program "
        "taken in by `bz setup --vmm`; host: nothing does, the agent runs on the host, which is no wall, and "
        "no annotation chooses it",
        choices=("qemu", "firecracker", "host"),
        annotation="vmm",
        weaker=weaker.vmm,
    ),
    Setting("boot_timeout_s", "int", HOST, 120, "seconds a VM may take to boot", limits=(1, 3600)),
    Setting(
        "templates",
        "bool",
        ORIGIN,
        True,
        "start VMs warm, from a template made after the first boot of a shape",
        annotation="templates",
        open=True,
    ),
    Setting("pool.size", "int", HOST, 0, "VMs per shape that wait, frozen; 0: none", limits=(0, 64)),
    Setting(
        "pool.idle_s", "int", HOST, 600, "seconds without a start until the pool ends", limits=(1, 1 << 30)
    ),
    Setting(
        "host_network",
        "str",
        VM,
        "refuse",
        "what a container gets that asks for the host's network: an error, no network, or an IPv4 network "
        "of its own behind passt, which needs no rights",
        choices=("refuse", "none", "passt"),
    ),
    Setting(
        "publish",
        "list",
        VM,
        [],
        "ports of the host that lead into VMs behind passt: [ADDRESS:]HOST:GUEST[/tcp|udp]",
        annotation="publish",
    ),
    Setting(
        "rootfs",
        "str",
        VM,
        "virtiofs",
        "how a container gets its root file system: shared live, or as a read-only image with an overlay",
        choices=("virtiofs", "block"),
        annotation="rootfs",
        open=True,
    ),
    Setting(
        "rootfs_image",
        "path",
        VM,
        "",
        "an EROFS or ext4 image in place of the bundle's root file system; `rootfs` is `block` then",
        annotation="rootfs_image",
    ),
    Setting("rootfs_cache_mib", "int", HOST, 8192, _CACHE, limits=(0, 1 << 24)),
    Setting(
        "egress",
        "list",
        GATE,
        [],
        "what a container may reach, see egress.md; not set: all that its network reaches; "
        "an annotation may only be stricter",
        annotation="egress",
        open=True,
        weaker=weaker.egress,
        check=egress.fault,
    ),
    Setting(
        "open_files",
        "int",
        VM,
        1 << 18,
        "files of the host that one VM may keep open; its kernel's caches are emptied before; more: EMFILE",
        limits=(1024, 1 << 20),
    ),
    *(
        Setting(key, "int", VM, 0, text, limits=(0, 1 << 30), annotation=key, open=True, weaker=weaker.faster)
        for key, text in _RATES.items()
    ),
    Setting(
        "image_store",
        "path",
        VM,
        "",
        "directory of guest images; not set: `/var/lib/bufferzone/images` for root, else "
        "`~/.local/share/bufferzone/images`",
    ),
    *(Setting(key, "int", HOST, 0, text, limits=(0, most)) for key, (most, text) in _ALLOWED.items()),
    Setting(
        "recorder",
        "bool",
        HOST,
        False,
        "write a line for each event of a container, which cannot be changed unseen: `bz log`",
        annotation="recorder",
        open=True,
        weaker=weaker.recorder,
    ),
    Setting(
        "foreign_checkpoints",
        "bool",
        HOST,
        False,
        "restore checkpoints that another host or user saved, whose writer feeds the VMM's migration stream",
    ),
    Setting(
        "self_audit",
        "str",
        HOST,
        "refuse",
        "what becomes of a sandbox one of whose helpers holds, in any thread, what its jail should have "
        "taken: `refuse` ends it before its program runs, `warn` says so in the shim's log; `off`: nobody "
        "looks",
        choices=("refuse", "warn", "off"),
    ),
    Setting("allow_annotations", "list", HOST, [], "annotations allowed beyond the open ones"),
)
ROWS = {row.key: row for row in TABLE}


class Settings:
    """The settings with their types; unknown keys cannot be set."""

    vcpus: int
    memory_mib: int
    kvm: str
    accelerator: str
    guest: str
    image: str
    kernel: str
    initrd: str
    kernel_arguments: list[str]
    vmm: str
    boot_timeout_s: int
    open_files: int
    templates: bool
    pool_size: int
    pool_idle_s: int
    host_network: str
    publish: list[str]
    rootfs: str
    rootfs_image: str
    rootfs_cache_mib: int
    egress: list[str]
    disk_kib_per_s: int
    disk_ops_per_s: int
    network_kib_per_s: int
    image_store: str
    annotation_vcpus: int
    annotation_memory_mib: int
    recorder: bool
    foreign_checkpoints: bool
    self_audit: str
    allow_annotations: list[str]

    def __init__(self, **values: Any) -> None:
        for row in TABLE:
            value = values.pop(row.name, row.default)
            self.__dict__[row.name] = list(value) if row.kind == "list" else value
        if values:
            raise TypeError(f"no setting {sorted(values)[0]!r}")
        self.image_store = self.image_store or default_image_store()

    def with_values(self, **values: Any) -> Settings:
        """A copy with some settings replaced."""
        return Settings(**{**self.__dict__, **values})


def _home() -> str:
    home = os.environ.get("HOME", "")
    if home.startswith("/"):
        return home
    import pwd

    try:
        return pwd.getpwuid(identity.outer_uid()).pw_dir
    except KeyError:
        return "/nonexistent"


def default_image_store() -> str:
    """/var/lib/bufferzone/images for root, else below the user's data directory."""
    if identity.is_real_root():
        return "/var/lib/bufferzone/images"
    data = os.environ.get("XDG_DATA_HOME", "")
    return os.path.join(data if data.startswith("/") else f"{_home()}/.local/share", "bufferzone/images")


def default_paths() -> list[str]:
    """The settings files that exist, in the order they are read; raises `HostError`."""
    found = [f"{DIRECTORY}/config.toml"]
    try:
        drop_ins = sorted(n for n in os.listdir(f"{DIRECTORY}/config.d") if n.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        drop_ins = []
    except OSError as error:  # they may forbid what a container then got
        raise HostError(f"{DIRECTORY}/config.d: {error.strerror}", code="config-unreadable") from error
    found += [f"{DIRECTORY}/config.d/{name}" for name in drop_ins]
    if not identity.is_real_root():
        found.append(os.path.join(_home(), ".config/bufferzone/config.toml"))
    return [path for path in found if _is_there(path)]


def _is_there(path: str) -> bool:
    """Where that cannot be told, reading the file tells why."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # open(2) fails alike
    return True


def read_also(where: str, text: str | None, unknown: frozenset[str]) -> None:
    """From now on `load` of this process reads more, last: the file `where`, or `text`, of which is told as
    `where`. Keys in `unknown` say nothing.
    """
    _also[where] = text, unknown


def read_beside() -> dict[str, str | None]:
    """What `load` reads beside the host's files: as `read_also` was told, by where it is said."""
    return {where: text for where, (text, _) in _also.items()}


def load(paths: Iterable[str] | None = None) -> Settings:
    """Read settings files, later ones win; None means `default_paths()`, and what `read_also` was told.

    Raises `settings_file.ConfigError` for what is wrong in a file, `HostError` when one cannot be read.
    """
    values: dict[str, Any] = {}
    for path in default_paths() if paths is None else paths:
        values.update(_read_file(path))
    if paths is None:
        for where, (text, unknown) in _also.items():
            values.update(_read_file(where, text, unknown))
    return Settings(**{ROWS[key].name: value for key, value in values.items()})


def _read_file(path: str, text: str | None = None, unknown: frozenset[str] = frozenset()) -> dict[str, Any]:
    from bufferzone import settings_file  # most machines have none

    read = settings_file.read(path, ROWS) if text is None else settings_file.parse(path, text.encode(), ROWS)
    found = {key: value for key, value in read.items() if key not in unknown}
    for key, value in found.items():
        if key not in ROWS:
            hint = "known: " + ", ".join(ROWS)
            text = f"{path}: {key}: unknown setting"
            raise settings_file.ConfigError(text, hint=hint, code="unknown-setting")
        reason = fault(ROWS[key], value)
        if reason:
            raise settings_file.ConfigError(f"{path}: {key}: {reason}")
    return found


def deciding(*kinds: str) -> tuple[str, ...]:
    """The attributes of the settings that decide something of these kinds, in the table's order."""
    return tuple(row.name for row in TABLE if row.decides in kinds)


def shape_of(settings: Settings) -> dict[str, Any]:
    """The settings that a waiting VM must have been made with, by attribute."""
    return {name: getattr(settings, name) for name in deciding(VM, ORIGIN)}


def known_annotations() -> Sequence[Setting]:
    """The rows an annotation may name, for `features` and documentation."""
    return [row for row in TABLE if row.annotation]
