"""From the kernel's hand-over to the agent's port: what PID 1 does before it serves. Runs in the VM only.

Everything tolerates having been done already (EBUSY, EEXIST), so that an initramfs script may precede us.
Source: systemd's API file systems table; Documentation/filesystems/ramfs-rootfs-initramfs.rst.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from bufferzone.container.cgroup import enable_controllers
from bufferzone.container.kernel_files import read
from bufferzone.container.loop import warn
from bufferzone.errors import GuestError
from bufferzone.guest import nic, vsock
from bufferzone.linux import interface
from bufferzone.linux import mount as lm
from bufferzone.linux import process as lp
from bufferzone.wire.agent import PORT_NAME

CGROUP_ROOT = "/sys/fs/cgroup"
MODULES = "/etc/bufferzone/modules"
_STAGE = "/.bufferzone-root"
_PORTS = "/sys/class/virtio-ports"
_PORT_TIMEOUT_S = 30.0
_NETLINK_KOBJECT_UEVENT = 15

_SAFE = lm.MS_NOSUID | lm.MS_NODEV | lm.MS_NOEXEC
_MOUNTS = (
    ("proc", "/proc", _SAFE, ""),
    ("sysfs", "/sys", _SAFE, ""),
    ("devtmpfs", "/dev", lm.MS_NOSUID, "mode=0755"),
    ("devpts", "/dev/pts", lm.MS_NOSUID | lm.MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5"),
    ("tmpfs", "/dev/shm", lm.MS_NOSUID | lm.MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", _SAFE, ""),
    ("tmpfs", "/run", lm.MS_NOSUID | lm.MS_NODEV, "mode=0755"),
    ("tmpfs", "/tmp", lm.MS_NOSUID | lm.MS_NODEV, "mode=1777"),
    ("cgroup2", CGROUP_ROOT, _SAFE, ""),
)
#: favordynmods (Linux 6.0): else a process that moves into a cgroup waits for a grace period, 8 ms of an exec
_CGROUP_OPTIONS = (
    "nsdelegate,memory_recursiveprot,favordynmods",
    "nsdelegate,memory_recursiveprot",
    "nsdelegate",
)


class Phases:
    """The boot's steps with the time each was finished, in ns of CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []
        self.done("python")

    def done(self, name: str) -> None:
        self.rows.append((name, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))


def boot(phases: Phases) -> int:
    """Bring the guest up and return the agent's channel, open: a port, or a vsock where the VMM has no ports;
    raises `GuestError` or OSError when that is impossible.
    """
    os.umask(0o022)
    os.environ.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    leave_rootfs()
    mount_api()
    lm.mount("", "/", flags=lm.MS_PRIVATE | lm.MS_REC)
    open_stdio()
    phases.done("mounts")
    load_modules()
    if vsock.is_chosen():
        vsock.load()
    nic.release_all()
    phases.done("modules")
    enable_controllers(CGROUP_ROOT)
    try:
        interface.bring_up("lo")
    except OSError as error:
        warn(f"lo: {error.strerror}")
    phases.done("system")
    fd = vsock.connect() if vsock.is_chosen() else open_port()
    phases.done("port")
    return fd


def mount_api() -> None:
    """The kernel's file systems and the volatile directories.

    What the kernel does not have is left out with a warning.
    """
    for kind, target, flags, data in _MOUNTS:
        try:
            os.makedirs(target, 0o755, exist_ok=True)
            if kind == "cgroup2":
                _mount_cgroup(target, flags)
            else:
                lm.mount(kind, target, kind, flags, data)
        except OSError as error:
            if error.errno != errno.EBUSY:
                warn(f"mount {target}: {error.strerror}")


def _mount_cgroup(target: str, flags: int) -> None:
    """With the first options that the kernel knows all of."""
    for options in _CGROUP_OPTIONS[:-1]:
        try:
            lm.mount("cgroup2", target, "cgroup2", flags, options)
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    lm.mount("cgroup2", target, "cgroup2", flags, _CGROUP_OPTIONS[-1])


def open_stdio() -> None:
    """Make 0, 1 and 2 open, so that no pipe of a container ever gets one of these numbers."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)


def leave_rootfs() -> None:
    """Make / a mount with a parent: pivot_root(2), which containers need, refuses the kernel's own
    initramfs root.
    """
    if _root_has_parent():
        return
    os.mkdir(_STAGE, 0o700)
    lm.mount("/", _STAGE, flags=lm.MS_BIND | lm.MS_REC)
    os.chdir(_STAGE)
    lm.mount(".", "/", flags=lm.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    os.rmdir(_STAGE)


def _root_has_parent() -> bool:
    """Whether / is something else than the kernel's first mount, which is its own parent."""
    mounted = not os.path.exists("/proc/self/mountinfo")
    if mounted:
        os.makedirs("/proc", exist_ok=True)
        lm.mount("proc", "/proc", "proc", _SAFE)
    rows = [line.split() for line in read("/proc/self/mountinfo").splitlines()]
    if mounted:
        lm.unmount("/proc")
    return all(row[0] != row[1] for row in rows if row[4] == "/")


def load_modules() -> None:
    """The kernel modules that the image lists, one absolute path per line, in load order."""
    for path in read(MODULES).split():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                lp.load_module(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno != errno.EEXIST:  # built in, or loaded already
                warn(f"module {path}: {error.strerror}")


def open_port() -> int:
    """The virtio-serial port of our name, waiting for the kernel's event where it is not there yet."""
    kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
    events = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
    try:
        events.bind((0, 1))
        deadline = time.monotonic() + _PORT_TIMEOUT_S
        while not (name := _find_port()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise GuestError(f"no virtio-serial port named {PORT_NAME}", code="no-port")
            events.settimeout(left)
            try:
                events.recv(8192)
            except TimeoutError:
                pass  # the loop looks once more and gives up
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost: look again
                    raise
    finally:
        events.close()
    return os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def _find_port() -> str:
    try:
        names = os.listdir(_PORTS)
    except FileNotFoundError:
        return ""
    for name in names:
        if read(f"{_PORTS}/{name}/name").strip() == PORT_NAME and os.path.exists(f"/dev/{name}"):
            return name
    return ""
