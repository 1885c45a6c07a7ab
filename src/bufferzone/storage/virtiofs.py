"""virtiofsd: the host's half of a sandbox's shared tree, confined to that tree.

virtiofsd acts for root of the guest, so it needs capabilities over the tree's inodes. It holds them in a user
namespace with the identity map: they count for files (capable_wrt_inode_uidgid), and for nothing else of the
host (no device nodes, no mounts, no trusted.* attributes). Its root shows the tree, its libraries, /dev/null
and /proc/self/fd; it has its own uid, no network, no other process in sight, and its own seccomp filter on
top.

Two programs are known: the C one that QEMU 7.2 brings (Debian 12) and the Rust one that followed it. The Rust
one has no uid of its own: it must be 0 in its user namespace, or files of the guest's root are not root's.
"""

from __future__ import annotations

import os
import resource
import socket

from bufferzone import allowlists, jail
from bufferzone.errors import HostError
from bufferzone.linux import landlock
from bufferzone.model import Share
from bufferzone.record import Record
from bufferzone.wire.agent import SHARE_TAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.spawn import Child

#: where the tree is in virtiofsd's jail
TREE_PATH = "/tree"
_PLACES = (
    ("rust", "/usr/libexec/virtiofsd"),
    ("rust", "/usr/bin/virtiofsd"),
    ("c", "/usr/lib/qemu/virtiofsd"),
    ("rust", "/usr/lib/virtiofsd"),
)
# chown, mode and owner checks, and set-id bits that a guest's root may do on its own files; becoming the
# owner of what it creates; whiteouts and fifos; file capabilities. The last two are for virtiofsd itself:
# chroot(2) into the tree, and giving up its bounding set. It drops both before it serves anything.
_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SYS_CHROOT",
    "CAP_SETPCAP",
)

# it reopens its O_PATH descriptors through /proc/self/fd; the Rust one looks up mount ids; each reads a limit
# of the system's before it looks at --rlimit-nofile
_PROC = {"rust": ("self/fd", "self/mountinfo", "sys/fs/nr_open"), "c": ("self/fd", "sys/fs/file-max")}


#: with fewer the Rust virtiofsd (1.13) ends: `Maximum number of file descriptors too small`
_LEAST_FILES = 610


class Program(Record):
    """A virtiofsd on this host: `kind` is `c` or `rust`."""

    kind: str
    path: str


def find_program(places: tuple[tuple[str, str], ...] = _PLACES) -> Program:
    """The virtiofsd to use, the Rust one first; raises HostError `virtiofsd-missing`."""
    for kind, path in places:
        if os.access(path, os.X_OK):
            return Program(kind=kind, path=os.path.realpath(path))
    raise HostError(
        "program not found: virtiofsd",
        hint="apt-get install qemu-system-common, or virtiofsd on Debian 13",
        code="virtiofsd-missing",
    )


def argv(program: Program, listen_fd: int, open_files: int, *, uid: int) -> list[str]:
    """The command line; `open_files` is the limit in force already (raising it takes CAP_SYS_RESOURCE)."""
    if program.kind == "rust":
        return _rust_argv(program.path, listen_fd, open_files, uid)
    return _c_argv(program.path, listen_fd)


def _c_argv(path: str, listen_fd: int) -> list[str]:
    options = (
        f"source={TREE_PATH}",
        # the jail has made the namespaces; what is left is to make the tree the root
        "sandbox=chroot",
        # file pages stay until size or mtime tell of a change (FUSE_AUTO_INVAL_DATA), metadata for a moment:
        # the host's changes show up, mmap works. With cache=auto every open drops the pages, so that every
        # execve(2) reads its program again, and TCG, which knows code by its pages, translates it again
        "cache=always",
        "timeout=0.1",
        # the guest sees and sets user.* and security.capability on the host's files
        "xattr",
        # each bind below the tree is its own file system in the guest: inode numbers do not collide
        "announce_submounts",
        # Linux 6.1 does not look at ACLs there (a submount's superblock has no SB_POSIXACL): what the guest
        # would not obey it must not set
        "no_posix_acl",
        # a remote lock that waits would block virtiofsd's only queue, one that fcntl(2) waits for fails: the
        # host's half of locks is storage/locks
        "no_flock",
        "no_posix_lock",
    )
    # 0: leave the limit alone, the jail has set it
    words = [path, f"--fd={listen_fd}", "-f", "--rlimit-nofile=0"]
    for option in options:
        words += ["-o", option]
    return words


def _rust_argv(path: str, listen_fd: int, open_files: int, uid: int) -> list[str]:
    return [
        path,
        f"--fd={listen_fd}",
        f"--shared-dir={TREE_PATH}",
        # chroot insists on uid 0; without it the jail alone is the sandbox
        "--sandbox=chroot" if uid == 0 else "--sandbox=none",
        "--cache=auto",
        "--xattr",
        # without --posix-acl it neither gets nor sets ACLs, as is told of the C one
        "--announce-submounts",
        # opening by handle takes CAP_DAC_READ_SEARCH in the initial user namespace
        "--inode-file-handles=never",
        f"--rlimit-nofile={open_files}",
        # one queue, served in order by the main thread
        "--thread-pool-size=0",
    ]


def describe_jail(
    program: Program,
    *,
    uid: int,
    gid: int,
    tree_fd: int,
    listen_fd: int,
    log_fd: int,
    open_files: int,
    cgroups: tuple[int, ...] = (),
) -> jail.Jail:
    """virtiofsd's jail: the tree's root is read-only too, the mounts below it are as they are, later ones
    follow."""
    libraries, links = jail.library_view()
    return jail.Jail(
        name="virtiofsd",
        uid=uid,
        gid=gid,
        log_fd=log_fd,
        calls=allowlists.VIRTIOFSD_RUST if program.kind == "rust" else allowlists.VIRTIOFSD_C,
        keep_fds=(listen_fd,),
        capabilities=_CAPABILITIES,
        user_namespace=True,
        binds=(
            *libraries,
            jail.JailBind(source=program.path, target=program.path),
            jail.JailBind(source=tree_fd, target=TREE_PATH, follow=True),
        ),
        links=links,
        devices=("null", "urandom"),
        proc=_PROC[program.kind],
        cgroups=cgroups,
        limits=((resource.RLIMIT_NOFILE, open_files),),
        restricted=landlock.Rules(writable=("/dev/null",), trees=(TREE_PATH,)),
    )


def start(
    tree_fd: int,
    socket_dir: str,
    *,
    uid: int,
    gid: int,
    log_fd: int,
    open_files: int,
    cgroups: tuple[int, ...] = (),
) -> tuple[Child, Share]:
    """Start virtiofsd for the tree that `tree_fd` (O_PATH) refers to; returns it and the share for the VMM.

    `open_files` bounds its descriptors, one for each file that the guest has open and each inode in the
    guest's caches; lowered to the hard limit. `socket_dir` is a private directory in which a socket has a
    name for a moment: vhost-user wants a listening socket, and only a named one can be connected to.
    `Share.fd` is the connected end; the caller closes it after the VMM has it. virtiofsd ends when that
    connection does. Raises HostError; then nothing is left.
    """
    program = find_program()
    uid, gid = _ids(program, uid, gid)
    open_files = allowed_files(program, open_files)
    listener, client = connected_pair(socket_dir)
    with listener, client:
        confined = describe_jail(
            program,
            uid=uid,
            gid=gid,
            tree_fd=tree_fd,
            listen_fd=listener.fileno(),
            log_fd=log_fd,
            open_files=open_files,
            cgroups=cgroups,
        )
        child = jail.start(argv(program, listener.fileno(), open_files, uid=uid), confined)
        return child, Share(tag=SHARE_TAG, fd=client.detach())


def allowed_files(program: Program, open_files: int) -> int:
    """How many files it may open; raises HostError where that is too few for it to start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if program.kind == "rust" and hard < _LEAST_FILES:
        raise HostError(
            f"the hard limit of open files is {hard}, and virtiofsd needs {_LEAST_FILES}",
            hint="ulimit -Hn, or LimitNOFILE= of the service that starts containers",
            code="open-files",
        )
    return min(open_files, hard)


def _ids(program: Program, uid: int, gid: int) -> tuple[int, int]:
    """Whom it runs as. The Rust one takes it that it is uid 0 when it creates a file for the guest's root."""
    return (0, 0) if program.kind == "rust" and os.geteuid() == 0 else (uid, gid)


def connected_pair(socket_dir: str) -> tuple[socket.socket, socket.socket]:
    """A listening stream socket with one connection waiting, and that connection's other end. No path
    remains."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # through the directory's descriptor: sun_path has 108 bytes, run directories may be deeper
    directory = os.open(socket_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"/proc/self/fd/{directory}/vhost-{os.getpid()}"
    try:
        listener.bind(path)
        try:
            listener.listen(1)
            client.connect(path)
        finally:
            os.unlink(path)
    except OSError as error:
        listener.close()
        client.close()
        raise HostError(f"cannot create a socket in {socket_dir}: {error.strerror}") from error
    finally:
        os.close(directory)
    return listener, client
