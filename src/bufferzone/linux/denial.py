"""Who refused: a security module of the host, our filter of system calls, or a sysctl, as advice for an error
line. Changes nothing.

Read only after something failed. AppArmor and SELinux say what they denied in the kernel's log alone, which
root may read. Source: proc(5) attr, user_namespaces(7), namespaces(7), /dev/kmsg in the kernel's ABI
documentation, apparmor(7).
"""

from __future__ import annotations

import errno
import os
import time

from bufferzone.linux import userns

_PROC = "/proc"
_LIMITS = "/proc/sys/user"
_SELINUX = "/sys/fs/selinux/enforce"
_LOG = "/dev/kmsg"
_KINDS = ("user", "mnt", "pid", "ipc", "uts", "net", "cgroup")
_DENIALS = ('apparmor="DENIED"', "avc:  denied")
_SECCOMP = "type=1326 "  # AUDIT_SECCOMP
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of linux/proc_ns.h
_LATELY_S = 30.0  # an older record is of who had that uid before
_MOST = 300  # characters of the kernel's words


def label(pid: int) -> str:
    """What confines a process, also one that has ended and was not reaped: `AppArmor profile passt`,
    `SELinux type container_t`; empty where nothing does, or it only complains.
    """
    directory = f"{_PROC}/{pid}/attr"
    text = _read(f"{directory}/apparmor/current") or _read(f"{directory}/current")
    name, _, mode = text.rpartition(" ")
    if mode in ("(enforce)", "(kill)"):
        return f"AppArmor profile {name}"
    kinds = text.split(":")
    if len(kinds) > 2 and "unconfined" not in kinds[2] and _read(_SELINUX) == "1":
        return f"SELinux type {kinds[2]}"
    return ""


def of(pid: int, confined: str) -> str:
    """What the kernel's log says was denied to the process; else that `confined`, its label, may be why."""
    if record := _last_record(f" pid={pid} ", _DENIALS):
        return _told(record)
    return f"{confined} confines it; what it denied: dmesg | grep -i denied" if confined else ""


def filtered(pid: int, wait_s: float = 0.0) -> str:
    """The system call that was last refused to the process by its filter, from the kernel's log; empty where
    there is none, or the log is not ours to read. `wait_s`: the kernel writes it a moment later.
    """
    end = time.monotonic() + wait_s
    while not (record := _refusal(pid)) and time.monotonic() < end:
        time.sleep(0.02)
    found = _word(record, "syscall")
    if not found.isdecimal():
        return ""
    from bufferzone.linux import syscalls

    name = syscalls.name_of(int(found))
    return f"the system call {name} is not on its list: src/bufferzone/allowlists.py"


def _refusal(pid: int) -> str:
    """The last record of a call that was refused to the process. It has the pid that the machine knows: in
    a PID namespace, and of a helper in one of its own, the uid tells, which is one helper's alone.
    """
    if record := _last_record(f" pid={pid} ", (_SECCOMP,)):
        return record
    try:
        uid, own = os.stat(f"{_PROC}/{pid}").st_uid, os.stat(f"{_PROC}/self/ns/pid").st_ino
    except OSError:
        return ""
    if own == _INITIAL_PID_NAMESPACE or uid == 0:
        return ""
    record = _last_record(f" uid={uid} ", (_SECCOMP,))
    stamp = record.partition("audit(")[2].partition(":")[0]
    return record if stamp and time.time() - float(stamp) < _LATELY_S else ""


def hint(number: int, pid: int, step: str = "") -> str:
    """Advice for the error `number` of a process that is there, in its `step`; empty when there is none."""
    if number in (errno.EPERM, errno.EACCES):
        return of(pid, label(pid)) or (userns.switched_off() if "namespace" in step else "")
    if number in (errno.ENOSPC, errno.EUSERS) and "namespace" in step:
        return limits()
    return ""


def limits() -> str:
    """Which limit of namespaces is at 0, or that one is reached."""
    for kind in _KINDS:
        if _read(f"{_LIMITS}/max_{kind}_namespaces") == "0":
            return f"{kind} namespaces are switched off: as root, sysctl user.max_{kind}_namespaces=15000"
    return "a limit of namespaces is reached: sysctl user"


def _last_record(who: str, marks: tuple[str, ...]) -> str:
    """The last record in the kernel's log that names `who` and has one of these marks."""
    found = ""
    try:
        log = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        while record := _next(log):
            if who in record and any(mark in record for mark in marks):
                found = record
    finally:
        os.close(log)
    return found


def _word(record: str, name: str) -> str:
    """The value of NAME=VALUE in a record."""
    return record.partition(f" {name}=")[2].partition(" ")[0]


def _next(log: int) -> str:
    """The next record; empty at the end."""
    while True:
        try:
            return os.read(log, 8192).decode("ascii", "replace")
        except BrokenPipeError:
            continue  # overwritten while we read: the next one is there
        except OSError:
            return ""


def _told(record: str) -> str:
    """`AppArmor profile passt denied open /run/x`. A name that a program chose is in hexadecimal there."""
    text = record.partition(";")[2].partition("\n")[0]
    if "avc:" in text:
        return f"SELinux {text.partition('avc:')[2].strip()}"[:_MOST]
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    said = [words.get(name, "").strip('"') for name in ("profile", "operation", "name", "info", "denied")]
    profile, *rest = said
    return f"AppArmor profile {profile} denied {' '.join(word for word in rest if word)}"[:_MOST]


def _read(path: str) -> str:
    """The file in one line; empty where there is none, or no module answers (EINVAL)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip("\0\n ")
    except OSError:
        return ""
