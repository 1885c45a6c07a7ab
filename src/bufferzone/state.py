"""The state directory: where a container's truth lies between two commands. Talks to nobody, starts nothing.

    ROOT/ID/state.json       the OCI state, byte for byte what `state` prints; replaced atomically
    ROOT/ID/owner            "PID STARTTIME\\n" of the shim; STARTTIME is field 22 of /proc/PID/stat
    ROOT/ID/leftovers.json   what a clean-up has to end when the shim was killed
    ROOT/ID/shim.sock        the shim's socket; containers of one VM have hard links of one
    ROOT/@net-DEV-INO        another, named after a network namespace that is the VM's
    ROOT/@pool/              the pool of waiting VMs, if there is one

A status other than `stopped` is true only while the owner lives. No json, re or typing on the `state` path:
the file is ours, one top-level key per line, so truth is applied by replacing two lines.
"""

from __future__ import annotations

import os

from bufferzone.errors import ExistsError, HostError, NotFoundError, UsageError
from bufferzone.linux import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CREATING, CREATED, RUNNING, PAUSED, STOPPED = "creating", "created", "running", "paused", "stopped"
OCI_VERSION = "1.2.0"
STATE, OWNER, LEFTOVERS, SOCKET = "state.json", "owner", "leftovers.json", "shim.sock"
POOL = "@pool"  # beside the containers, with a name that no id can be
POOL_SOCKET = "keeper.sock"  # in it
MAX_ID = 255

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def runtime_root(flag: str = "") -> str:
    """The state root as an absolute path: the flag, /run/bufferzone for root, else XDG_RUNTIME_DIR or /tmp.

    Nothing is created. Raises `HostError` when the directory exists but belongs to somebody else.
    """
    return absolute(flag) if flag else _run_directory("bufferzone")


def lease_root() -> str:
    """Where the uids in use are locked: one place for all of root's sandboxes or all of a user's."""
    return _run_directory("bufferzone-uids")


def _run_directory(name: str) -> str:
    """/run/NAME for root of this machine or container, else NAME below XDG_RUNTIME_DIR or in /tmp."""
    uid = os.geteuid()
    base = "" if identity.is_real_root() else os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == 0 and not base.startswith("/") and os.access("/run", os.W_OK):
        return f"/run/{name}"
    root = os.path.join(base, name) if base.startswith("/") else f"/tmp/{name}-{identity.outer_uid()}"
    try:
        found = os.lstat(root)
    except OSError:
        if base and not os.path.isdir(base):
            raise HostError(
                f"XDG_RUNTIME_DIR is not a directory: {base}",
                code="no-runtime-dir",
                hint="log in (su does not make it), or: loginctl enable-linger, or pass --root",
            ) from None
        return root
    if found.st_uid != uid or found.st_mode & 0o170077 != 0o040000:
        hint = "remove it, or pass --root"
        raise HostError(
            f"state root is not a private directory of uid {uid}: {root}", code="root-owner", hint=hint
        )
    return root


def absolute(path: str) -> str:
    """`path` from the working directory on; raises `UsageError` when that has been removed."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise UsageError(f"the working directory was removed: {path}", hint="use an absolute path") from error


def check_id(id: str) -> str:
    """Return `id` when it can name a container, else raise `UsageError`. Characters as runc accepts them."""
    if id and len(id) <= MAX_ID and id not in (".", "..") and _ID_CHARACTERS.issuperset(id):
        return id
    shown = ascii(id if len(id) <= 64 else id[:61] + "...")[1:-1]
    hint = f"letters, digits and _ + - . only, at most {MAX_ID}"
    raise UsageError(f"invalid container ID format: {shown}", hint=hint, code="bad-id")


def create(root: str, id: str) -> str:
    """Make ROOT/ID (0700) with ourselves as its first owner and return its path.

    Raises `ExistsError` when the id is taken, `HostError` when the disk refuses; then nothing is left.
    """
    directory = os.path.join(root, check_id(id))
    try:
        os.makedirs(root, 0o700, exist_ok=True)
        os.mkdir(directory, 0o700)
    except FileExistsError as error:
        if not os.path.isdir(root):
            raise HostError(f"state root is not a directory: {root}", code="root-owner") from error
        raise ExistsError(f"container with id exists: {id}") from error
    except OSError as error:
        raise HostError(f"cannot create {directory}: {error.strerror}", code="state-dir") from error
    try:
        write_owner(directory, os.getpid())
    except HostError:
        remove(directory)
        raise
    return directory


def directory(root: str, id: str) -> str:
    """The path of an existing container's directory; raises `NotFoundError`."""
    path = os.path.join(root, check_id(id))
    if not os.path.isdir(path):
        raise no_container(id)
    return path


def no_container(id: str) -> NotFoundError:
    """The error for an id that is not there, in the words callers match; raise what this returns."""
    return NotFoundError(f'container "{id}" does not exist', code="no-container")


def list_ids(root: str) -> list[str]:
    """The ids below `root`, sorted; empty when there is no root. Raises `HostError`."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"cannot list {root}: {error.strerror}", code="state-unreadable") from error
    return sorted(n for n in names if _ID_CHARACTERS.issuperset(n) and os.path.isdir(os.path.join(root, n)))


def write_state(
    directory: str,
    *,
    id: str,
    status: str,
    pid: int,
    bundle: str,
    rootfs: str,
    created: str,
    owner: str,
    annotations: Mapping[str, str],
) -> None:
    """Replace state.json. `created` is RFC 3339, `owner` a user name; `pid` is written as 0 when stopped.

    On a full disk it is written over the old one, where that has the room, so that a container that ended
    is told as ended. Raises `HostError` when that fails too; the old file is then untouched.
    """
    from bufferzone.jsontext import quote

    pairs = [f"    {quote(key)}: {quote(value)}" for key, value in sorted(annotations.items())]
    inner = "{\n" + ",\n".join(pairs) + "\n  }" if pairs else "{}"
    text = (
        f'{{\n  "ociVersion": "{OCI_VERSION}",\n  "id": {quote(id)},\n'
        f'  "pid": {0 if status == STOPPED else pid},\n  "status": {quote(status)},\n'
        f'  "bundle": {quote(bundle)},\n  "rootfs": {quote(rootfs)},\n  "created": {quote(created)},\n'
        f'  "owner": {quote(owner)},\n  "annotations": {inner}\n}}\n'
    )
    path = os.path.join(directory, STATE)
    try:
        replace_file(path, text.encode())
    except HostError:
        if not _overwrite(path, text.encode()):
            raise


def _overwrite(path: str, data: bytes) -> bool:
    """Write into the blocks that a file has already; False when there is none, not enough of them, or none
    may be written (RLIMIT_FSIZE).
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fits = len(data) <= os.fstat(fd).st_blocks * 512
        if fits:
            os.pwrite(fd, data, 0)
            os.ftruncate(fd, len(data))
        return fits
    except OSError:
        return False
    finally:
        os.close(fd)


def replace_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file atomically (temporary file, then rename); `HostError` leaves the old file alone."""
    temporary = f"{path}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # it never came to be
        raise HostError(f"cannot write {path}: {error.strerror}", code="write-failed") from error


def _read(directory: str, name: str) -> bytes:
    try:
        with open(os.path.join(directory, name), "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise HostError(f"cannot read {directory}/{name}: {error.strerror}", code="read-failed") from error


def state_text(directory: str) -> bytes:
    """The state as JSON bytes with truth applied: when the owner is dead, `stopped` with pid 0.

    Raises `NotFoundError` when the directory is gone or half removed.
    """
    text = _read(directory, STATE)
    if not text:
        raise no_container(os.path.basename(directory))
    if b'\n  "status": "stopped",' in text or owner_alive(directory):
        return text
    return _replace_line(_replace_line(text, b"status", b'"stopped"'), b"pid", b"0")


def _replace_line(text: bytes, key: bytes, value: bytes) -> bytes:
    # A raw newline cannot stand inside a JSON string, so a line with two spaces of indent is a top-level key.
    start = text.index(b'\n  "' + key + b'": ') + len(key) + 7
    return text[:start] + value + text[text.index(b",\n", start) :]


def status(directory: str) -> str:
    """Only the status, truth applied, without json."""
    text = state_text(directory)
    start = text.index(b'\n  "status": "') + 14
    return text[start : text.index(b'"', start)].decode()


def annotated(directory: str, pair: bytes) -> bool:
    """Whether the state has this annotation, written as `"name": "value"`; without json."""
    return b"\n    " + pair in _read(directory, STATE)


def read_state(directory: str) -> dict[str, Any]:
    """The state as a dict, truth applied."""
    import json

    result: dict[str, Any] = json.loads(state_text(directory))
    return result


def write_owner(directory: str, pid: int) -> None:
    """Record `pid` (the shim's) as the process whose life makes the status true."""
    replace_file(os.path.join(directory, OWNER), b"%d %d\n" % (pid, process_start(pid)))


def owner_pid(directory: str) -> int:
    """The owner's pid, or 0 when it is dead, another process by now, or was never recorded."""
    fields = _read(directory, OWNER).split()
    if len(fields) != 2 or not (fields[0].isdigit() and fields[1].isdigit()):
        return 0
    pid = int(fields[0])
    return pid if process_alive(pid, int(fields[1])) else 0


def owner_alive(directory: str) -> bool:
    """Whether the shim of this container lives."""
    return owner_pid(directory) != 0


def process_start(pid: int) -> int:
    """The start time of a process in clock ticks since boot; 0 when there is none or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return 0
    return int(fields[19])


def process_alive(pid: int, start: int) -> bool:
    """Whether `pid` still is the process that started at `start`."""
    return pid > 0 and start > 0 and process_start(pid) == start


def write_leftovers(directory: str, leftovers: Mapping[str, Any]) -> None:
    """Record what outlives a killed shim: {"processes": [[pid, starttime]], "cgroups": [paths], ...}."""
    import json

    replace_file(os.path.join(directory, LEFTOVERS), json.dumps(leftovers, indent=1).encode() + b"\n")


def read_leftovers(directory: str) -> dict[str, Any]:
    """What `write_leftovers` recorded; empty when there is nothing."""
    import json

    text = _read(directory, LEFTOVERS)
    result: dict[str, Any] = json.loads(text) if text else {}
    return result


def socket_path(directory: str) -> str:
    """The socket of the shim that serves this container."""
    return os.path.join(directory, SOCKET)


def netns_entry(root: str, device: int, inode: int) -> str:
    """Where the shim is found whose VM has the network namespace with these st_dev and st_ino."""
    return os.path.join(root, f"@net-{device:x}-{inode}")


def remove(directory: str) -> None:
    """Remove ROOT/ID and all below it; symbolic links are removed, never followed. Nothing there is fine.

    Raises `HostError` when something is still mounted below it: a bind mount holds somebody's files.
    """
    mounted = mounts_below(directory)
    if mounted:
        raise HostError(
            f"still mounted: {mounted[0]}", code="still-mounted", hint="unmount it, then delete again"
        )
    try:
        _remove_tree(directory)
    except OSError as error:
        raise HostError(f"cannot remove {error.filename}: {error.strerror}", code="remove-failed") from error


def mounts_below(directory: str) -> list[str]:
    """Mount points in or at `directory`, as /proc/self/mountinfo tells them (deepest last)."""
    real = os.fsencode(os.path.realpath(directory))
    for byte in b"\\ \t\n":  # as proc(5) writes them
        real = real.replace(b"%c" % byte, b"\\%03o" % byte)
    with open("/proc/self/mountinfo", "rb") as file:
        points = [line.split(b" ", 5)[4] for line in file]
    return sorted(os.fsdecode(p) for p in points if p == real or p.startswith(real + b"/"))


def _remove_tree(directory: str) -> None:
    try:
        entries = list(os.scandir(directory))
    except FileNotFoundError:
        return
    entries.sort(
        key=lambda entry: entry.name in (STATE, OWNER)
    )  # a half removed container still tells its state
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                _remove_tree(entry.path)
            else:
                os.unlink(entry.path)
        except FileNotFoundError:
            pass  # somebody else removes it too
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
