"""What `bz run` is told as text, read into a wish: sizes, volumes, mounts, limits, environment.

The forms are Docker's. Source: docker-run(1), Docker's documentation of --mount and of --env-file.
"""

from __future__ import annotations

import os

from bufferzone import state
from bufferzone.cli import discretion, durations
from bufferzone.cli.flags import Flag
from bufferzone.errors import CallerError, UsageError
from bufferzone.log import shown
from bufferzone.oci.rules import LEAST_MEMORY, RLIMITS
from bufferzone.workload import from_image
from bufferzone.workload.wish import NETWORKS, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bufferzone.cli.flags import Options
    from bufferzone.images.fetch import Image

#: what a wish takes; the flags are docker's
FLAGS = (
    Flag("env e", "K[=V]", "one more environment variable; without a value, ours", kind="list"),
    Flag("env-file", "FILE", "environment variables, one a line", kind="list"),
    Flag("user u", "NAME|UID[:GROUP]", "who runs the command"),
    Flag("entrypoint", "PROGRAM", "the program; the command is what it is given then"),
    Flag("workdir w", "DIR", "working directory inside"),
    Flag(
        "volume v",
        "SRC:DST[:ro]",
        "a directory or file of the host; also DST alone: an empty one",
        kind="list",
    ),
    Flag("mount", "K=V,...", "type=bind|tmpfs,source=,target=,readonly,tmpfs-size=,tmpfs-mode=", kind="list"),
    Flag("tmpfs", "DST[:OPTIONS]", "an empty file system in the memory of the sandbox", kind="list"),
    Flag("memory m", "SIZE", "limit, such as 512m or 2g; the VM is as large as that takes"),
    Flag("cpus", "N", "limit, such as 1.5; the VM has that many CPUs, rounded up"),
    Flag("pids-limit", "N", "how many processes there may be", kind="int"),
    Flag(
        "network net",
        "none|passt",
        "none, or behind the host's addresses, without any right",
        default="passt",
    ),
    Flag("publish p", "[IP:]HOST:GUEST[/udp]", "a port of the host that leads into the sandbox", kind="list"),
    Flag("egress", "RULE", "what it may reach, [tcp|udp|icmp:]ADDRESS[/BITS][:PORTS], or none", kind="list"),
    Flag("read-only", "", "the root file system is read-only"),
    Flag("disk", "", "the root file system is a disk, what is written lies in memory: it can be saved"),
    Flag("cap-add", "NAME", "one more capability, or ALL", kind="list"),
    Flag("cap-drop", "NAME", "one capability less, or ALL", kind="list"),
    Flag("init", "", "a process 1 that reaps and passes on signals"),
    Flag("ulimit", "NAME=SOFT[:HARD]", "a resource limit of the process, such as nofile=1024", kind="list"),
    Flag("label l", "K=V", "an annotation of the container", kind="list"),
    Flag("hostname h", "NAME", "the name inside"),
    Flag(
        "kvm",
        "require|warn|allow",
        "what to do where there is no usable KVM; not weaker than the settings",
        kind="choice",
    ),
)

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NO_LIMIT = (1 << 64) - 1
#: without SELinux they mean nothing, as with docker
_SELINUX_LABELS = {"z", "Z"}
_BIND_OPTIONS = ("ro", "rw", "nosuid", "nodev", "noexec")


def wish_of(options: Options, args: list[str], *, terminal: bool, image: Image | None = None) -> Wish:
    """The wish that these flags make, with what `image` asks for. Raises `UsageError` naming the flag."""
    if options.network not in NETWORKS:
        hint = "a network of Podman's: podman --runtime bufferzone run"
        raise UsageError(
            f"--network: expected {', '.join(NETWORKS)}, got {shown(options.network)}", hint=hint
        )
    annotations = dict(_pair("--label", text) for text in options.label)
    if options.kvm:
        annotations["bufferzone.kvm"] = options.kvm
    if options.disk and image is None:
        raise UsageError("--disk: the host's own programs are not packed", hint="bz run --disk IMAGE")
    args = [*([options.entrypoint] if options.entrypoint else []), *args]
    wish = Wish(
        args,
        env=environment(options.env_file, options.env),
        cwd=_inside("--workdir", options.workdir) if options.workdir else "",
        user=options.user,
        hostname=options.hostname,
        mounts=mounts(options.volume, options.mount, options.tmpfs),
        memory_bytes=_memory(options.memory) if options.memory else 0,
        cpus=_cpus(options.cpus) if options.cpus else 0.0,
        pids=max(0, options.pids_limit),
        network=options.network,
        publish=options.publish,
        egress=options.egress or None,
        read_only=options.read_only,
        disk=options.disk,
        cap_add=options.cap_add,
        cap_drop=options.cap_drop,
        init=options.init,
        ulimits=dict(_ulimit(text) for text in options.ulimit),
        annotations=annotations,
        terminal=terminal,
        image=image,
    )
    if image is not None:
        from_image.fill(wish, own_entrypoint=bool(options.entrypoint))
    if not wish.args:
        form = f"bz run {image.reference} COMMAND" if image else "bz run -- COMMAND"
        raise UsageError("no command is given", hint=form)
    return wish


def size(flag: str, text: str) -> int:
    """Bytes of 512m, 2g or 1048576."""
    number = text.strip().lower().removesuffix("ib").rstrip("bkmgt")
    unit = text.strip().lower()[len(number) :][:1]
    try:
        value = int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"{flag}: expected a size like 512m or 2g, got {shown(text)}") from None
    if not 0 < value < 1 << 62:
        raise UsageError(f"{flag}: out of range: {shown(text)}")
    return value


def _memory(text: str) -> int:
    value = size("--memory", text)
    if value < LEAST_MEMORY:
        raise UsageError(f"--memory: expected at least {LEAST_MEMORY >> 10}k, got {shown(text)}")
    return value


def _cpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1024:
        raise UsageError(f"--cpus: expected a number from 0.01 to 1024, like 1.5, got {shown(text)}")
    return value


def seconds(flag: str, text: str) -> float:
    """A time of 30, 1.5 or 1m30s in seconds."""
    try:
        return durations.seconds(text if text[-1:].isalpha() else f"{text}s")
    except UsageError:
        raise UsageError(f"{flag}: expected seconds, or a time like 2m, got {shown(text)}") from None


def environment(files: list[str], words: list[str]) -> list[str]:
    """K=V of the files and then of the words; a K alone is taken from our own environment, if it is there.

    `ps` shows no value of the words from now on.
    """
    discretion.hide_values(words)
    lines = list(words)
    for path in reversed(files):
        try:
            with open(path, encoding="utf-8") as file:
                lines[:0] = [line for raw in file if (line := raw.strip()) and not line.startswith("#")]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UsageError(f"--env-file: {path}: {reason}") from error
    found = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not name or "\0" in line:
            raise UsageError(f"--env: expected NAME=VALUE, got {shown(line)}")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return [f"{name}={value}" for name, value in found.items()]


def mounts(volumes: list[str], long_forms: list[str], tmpfs: list[str]) -> list[dict[str, Any]]:
    """Entries of config.json."""
    found = [_volume(text) for text in volumes] + [_long_form(text) for text in long_forms]
    return found + [_tmpfs(*_split(text)) for text in tmpfs]


def _split(text: str) -> tuple[str, list[str]]:
    target, _, options = text.partition(":")
    return target, [word for word in options.split(",") if word]


def _volume(text: str) -> dict[str, Any]:
    source, *rest = text.split(":")
    if not rest:
        return _tmpfs(_inside("--volume", source), [])
    target, options = rest[0], rest[1].split(",") if len(rest) > 1 else []
    if _SELINUX_LABELS & set(options) and os.path.exists("/sys/fs/selinux/enforce"):
        raise UsageError(
            f"--volume: SELinux labels are not supported: {shown(text)}", hint="chcon(1), without :z"
        )
    unknown = set(options) - {*_BIND_OPTIONS, *_SELINUX_LABELS}
    if len(rest) > 2 or unknown:
        raise UsageError(f"--volume: expected SRC:DST[:ro], got {shown(text)}")
    if "/" not in source:
        hint = f"a directory: ./{source}"
        raise UsageError(f"--volume: named volumes are not supported: {shown(source)}", hint=hint)
    return _bind("--volume", source, target, [word for word in options if word in _BIND_OPTIONS])


def _bind(flag: str, source: str, target: str, options: list[str]) -> dict[str, Any]:
    path = state.absolute(os.path.expanduser(source))
    if not os.path.exists(path):
        raise CallerError(f"{flag}: no such file or directory: {shown(path)}", code="no-volume")
    entry = {"destination": _inside(flag, target), "type": "bind", "source": path}
    return {**entry, "options": ["rbind", *("rro" if word == "ro" else word for word in options)]}


def _tmpfs(target: str, options: list[str]) -> dict[str, Any]:
    usual = [] if any(word.startswith("mode=") for word in options) else ["mode=1777"]
    entry = {"destination": _inside("--tmpfs", target), "type": "tmpfs", "source": "tmpfs"}
    return {**entry, "options": ["nosuid", "nodev", *usual, *options]}


def _inside(flag: str, path: str) -> str:
    if not path.startswith("/"):
        raise UsageError(f"{flag}: expected an absolute path inside, got {shown(path)}")
    return path


_KEYS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_KNOWN = ("type", "source", "target", "readonly", "tmpfs-size", "tmpfs-mode")


def _long_form(text: str) -> dict[str, Any]:
    found: dict[str, str] = {}
    for word in text.split(","):
        name, _, value = word.partition("=")
        name = _KEYS.get(name, name)
        if name not in _KNOWN:
            raise UsageError(f"--mount: unknown: {shown(word)}", hint="known: " + ", ".join(_KNOWN))
        found[name] = value
    kind, target = found.get("type", "bind"), found.get("target", "")
    read_only = found.get("readonly", "false") in ("", "true", "1")
    if kind == "tmpfs":
        options = ["ro"] if read_only else []
        if "tmpfs-size" in found:
            options.append(f"size={size('--mount: tmpfs-size', found['tmpfs-size'])}")
        if "tmpfs-mode" in found:
            options.append(f"mode={found['tmpfs-mode']}")
        return _tmpfs(target, options)
    if kind != "bind" or not found.get("source"):
        raise UsageError(
            f"--mount: expected type=bind,source=,target= or type=tmpfs,target=, got {shown(text)}"
        )
    return _bind("--mount", found["source"], target, ["ro"] if read_only else [])


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or name.startswith("bufferzone."):
        raise UsageError(f"{flag}: expected NAME=VALUE, without a reserved name, got {shown(text)}")
    return name, value


def _ulimit(text: str) -> tuple[str, tuple[int, int]]:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    numbers = []
    for value in (soft, hard or soft):
        if value in ("-1", "unlimited"):
            numbers.append(_NO_LIMIT)
        elif value.isascii() and value.isdigit() and len(value) < 20:
            numbers.append(int(value))
        else:
            raise UsageError(f"--ulimit: expected NAME=SOFT[:HARD], got {shown(text)}")
    known = [known.removeprefix("RLIMIT_").lower() for known in RLIMITS]
    if name.lower() not in known:
        raise UsageError(f"--ulimit: unknown: {shown(name)}", hint="known: " + ", ".join(known))
    if numbers[0] > numbers[1]:
        raise UsageError(f"--ulimit: the soft limit exceeds the hard one: {shown(text)}")
    return name, (numbers[0], numbers[1])
