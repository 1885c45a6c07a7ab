"""Tries what a file system can do, in directory argv[1]: one line per thing, its name, a tab, and yes or the
error's name. Runs in a container, with the host's Python and nothing else.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
place = os.path.abspath(sys.argv[1])
os.chdir(place)


class WrongError(Exception):
    """It said success and did something else."""


def call(name, *words):
    if getattr(libc, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), name)


def make(name, data=b"data"):
    with open(name, "wb") as file:
        file.write(data)
    return name


def load(name):
    with open(name, "rb") as file:
        return file.read()


def must(true, what):
    if not true:
        raise WrongError(what)


def rename_over():
    make("a", b"new")
    make("b", b"old")
    os.rename("a", "b")
    must(load("b") == b"new", "old")


def rename_exchange():
    make("a", b"1")
    make("b", b"2")
    call("renameat2", -100, b"a", -100, b"b", 2)
    must(load("a") == b"2", "not exchanged")


def hard_link():
    make("a")
    os.link("a", "linked")
    must(os.stat("a").st_nlink == 2, "one link")
    must(os.stat("a").st_ino == os.stat("linked").st_ino, "two files")


def symbolic_link():
    os.symlink("nowhere", "link")
    must(os.readlink("link") == "nowhere", "elsewhere")


def o_tmpfile():
    os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600))


def removed_file_stays_open():
    with open(make("gone"), "r+b") as file:
        os.unlink("gone")
        file.write(b"more")
        file.flush()
        must(os.fstat(file.fileno()).st_size == 4, "lost")


def flock():
    with open(make("locked"), "r+b") as one, open("locked", "r+b") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise WrongError("two have it")


def fcntl_locks():
    with open(make("locked"), "r+b") as one, open("locked", "r+b") as other:
        for start, file in ((0, one), (5, other)):
            fcntl.fcntl(file, 37, struct.pack("=hhxxxxqqixxxx", 1, 0, start, 5, 0))
        try:
            fcntl.fcntl(other, 37, struct.pack("=hhxxxxqqixxxx", 1, 0, 4, 1, 0))
        except BlockingIOError:
            return
        raise WrongError("two have it")


def shared_mapping():
    with open(make("mapped", b"x" * 4096), "r+b") as file, mmap.mmap(file.fileno(), 4096) as pages:
        pages[0:5] = b"hello"
        must(os.pread(file.fileno(), 5, 0) == b"hello", "not seen by read(2)")
        pages.flush()


def inotify_of_ones_own():
    fd = libc.inotify_init1(os.O_NONBLOCK)
    call("inotify_add_watch", fd, os.fsencode(os.getcwd()), 0x100)
    make("heard")
    must(os.read(fd, 4096).rstrip(b"\0").endswith(b"heard"), "another name")


def extended_attributes():
    os.setxattr(make("attributed"), "user.probe", b"value")
    must(os.getxattr("attributed", "user.probe") == b"value", "another value")


def file_capabilities():
    os.setxattr(
        make("capable"), "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    must(os.getxattr("capable", "security.capability"), "gone")


def posix_acl():
    entries = ((1, 6, -1), (2, 6, 1234), (4, 4, -1), (0x10, 6, -1), (0x20, 0, -1))
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(make("listed"), "system.posix_acl_access", raw)
    must(os.getxattr("listed", "system.posix_acl_access") == raw, "another list")


def unix_socket():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")


def fifo():
    os.mkfifo("fifo")
    read = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    write = os.open("fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(write, b"x")
    must(os.read(read, 1) == b"x", "lost")


def device_node():
    os.mknod("null", 0o20600, os.makedev(1, 3))
    os.close(os.open("null", os.O_RDWR))


def sparse_file():
    with open("sparse", "wb") as file:
        file.truncate(1 << 24)
        file.seek(1 << 23)
        file.write(b"x")
        file.flush()
        must(os.fstat(file.fileno()).st_blocks < 1 << 12, "not sparse")


def seek_hole():
    with open("holes", "w+b") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
        file.flush()
        must(os.lseek(file.fileno(), 0, os.SEEK_DATA) > 0, "all is data")


def fallocate():
    with open(make("room"), "r+b") as file:
        call("fallocate", file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(1 << 16))
        must(os.fstat(file.fileno()).st_size == 1 << 16, "no longer")


def punch_hole():
    with open(make("punched", b"x" * 65536), "r+b") as file:
        call("fallocate", file.fileno(), 3, ctypes.c_long(0), ctypes.c_long(4096))
        must(os.pread(file.fileno(), 1, 0) == b"\0", "not punched")


def o_direct():
    fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    with mmap.mmap(-1, 4096) as page:
        page[:] = b"d" * 4096
        must(os.write(fd, page) == 4096, "short")
    must(load("direct")[:1] == b"d", "lost")


def getflags():
    with open(make("flags"), "rb") as file:
        fcntl.ioctl(file, 0x80086601, bytes(8))


def immutable():
    with open(make("fixed"), "rb") as file:
        fcntl.ioctl(file, 0x40086602, struct.pack("q", 0x10))
        try:
            open("fixed", "ab").close()
        except PermissionError:
            return
        finally:
            fcntl.ioctl(file, 0x40086602, struct.pack("q", 0))
        raise WrongError("can be written")


def copy_file_range():
    with open(make("from", b"copied"), "rb") as source, open("to", "w+b") as target:
        must(os.copy_file_range(source.fileno(), target.fileno(), 6) == 6, "short")
        must(os.pread(target.fileno(), 6, 0) == b"copied", "lost")


def sendfile():
    with open(make("from", b"copied"), "rb") as source, open("to", "w+b") as target:
        must(os.sendfile(target.fileno(), source.fileno(), 0, 6) == 6, "short")
        must(os.pread(target.fileno(), 6, 0) == b"copied", "lost")


def reflink():
    with open(make("from"), "rb") as source, open("to", "wb") as target:
        fcntl.ioctl(target, 0x40049409, source.fileno())


def fsync():
    with open(make("synced"), "r+b") as file:
        os.fsync(file.fileno())
    fd = os.open(".", os.O_RDONLY)
    os.fsync(fd)


def o_sync():
    fd = os.open("sync", os.O_WRONLY | os.O_CREAT | os.O_SYNC, 0o600)
    must(os.write(fd, b"x") == 1, "short")


def times():
    os.utime(make("timed"), ns=(1_000_000_001, 2_000_000_002))
    must(os.stat("timed").st_mtime_ns == 2_000_000_002, "not to the nanosecond")


def owner_and_mode():
    os.chown(make("owned"), 1234, 4321)
    os.chmod("owned", 0o4640)
    found = os.stat("owned")
    must((found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1234, 4321, 0o4640), "another")


def lease():
    with open(make("leased"), "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def file_handle():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    call("name_to_handle_at", -100, os.fsencode(make("handled")), handle, ctypes.byref(ctypes.c_int()), 0)


class Attributes(ctypes.Structure):
    """struct mount_attr, see mount_setattr(2)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def id_mapped_mount():
    ready, theirs = os.pipe()
    go, ours = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, b"x" if libc.unshare(0x10000000) == 0 else b"")
        os.close(ours)
        os.read(go, 1)
        os._exit(0)
    try:
        os.close(theirs)
        must(os.read(ready, 1), "no user namespace")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{child}/{name}", "w") as file:
                file.write("0 1000 1000")
        userns = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
        tree = libc.syscall(428, -100, b".", 1)  # open_tree, OPEN_TREE_CLONE
        must(tree >= 0, "no tree")
        wanted = Attributes(set=0x100000, userns=userns)  # MOUNT_ATTR_IDMAP
        call("syscall", 442, tree, b"", 0x1000, ctypes.byref(wanted), ctypes.sizeof(wanted))
    finally:
        os.close(ours)
        os.waitpid(child, 0)


def size_of_the_file_system():
    found = os.statvfs(".")
    must(found.f_blocks and found.f_bavail <= found.f_blocks, "nothing")


WORDS = {
    "rename over": rename_over,
    "renameat2 RENAME_EXCHANGE": rename_exchange,
    "hard links": hard_link,
    "symbolic links": symbolic_link,
    "O_TMPFILE": o_tmpfile,
    "a removed file stays open": removed_file_stays_open,
    "flock": flock,
    "fcntl locks": fcntl_locks,
    "shared mapping": shared_mapping,
    "inotify of the container's own changes": inotify_of_ones_own,
    "user.* attributes": extended_attributes,
    "file capabilities": file_capabilities,
    "POSIX ACL": posix_acl,
    "unix socket": unix_socket,
    "fifo": fifo,
    "device node": device_node,
    "sparse files": sparse_file,
    "SEEK_DATA": seek_hole,
    "fallocate": fallocate,
    "punch a hole": punch_hole,
    "O_DIRECT": o_direct,
    "FS_IOC_GETFLAGS": getflags,
    "chattr +i": immutable,
    "copy_file_range": copy_file_range,
    "sendfile": sendfile,
    "reflink": reflink,
    "fsync": fsync,
    "O_SYNC": o_sync,
    "times to the nanosecond": times,
    "owner and mode": owner_and_mode,
    "F_SETLEASE": lease,
    "name_to_handle_at": file_handle,
    "id-mapped mount": id_mapped_mount,
    "statfs": size_of_the_file_system,
}
for number, (name, work) in enumerate(WORDS.items()):
    os.mkdir(f"{number}")
    os.chdir(f"{number}")
    try:
        work()
        said = "yes"
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error.errno))
    except WrongError as error:
        said = f"no: {error}"
    os.chdir(place)
    print(name, said, sep="\t", flush=True)
