"""An OCI `linux.seccomp` section compiled to a BPF program by libseccomp.so.2, with runc's semantics.

Unknown names of system calls are ignored (profiles name those of all kernels), an unknown action, operator or
architecture is the caller's error. Refuses: SCMP_ACT_NOTIFY, since the listener would be a program on the
host; a listenerPath without it means nothing, as with runc. The input is a loader's output: a dict with
the shapes of the runtime spec; its values are checked here.

runc answers ENOSYS instead of `defaultAction` for system calls newer than every one that the profile names.
The same is done here, in front of libseccomp's program, which libseccomp itself cannot express. See runc's
libcontainer/seccomp.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from bufferzone.errors import BugError, HostError, SpecError
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_ALLOW, _LOG, _KILL_PROCESS, _KILL_THREAD = 0x7FFF0000, 0x7FFC0000, 0x80000000, 0
_TRAP, _ERRNO, _TRACE = 0x00030000, 0x00050000, 0x7FF00000
_ACTIONS = {
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_LOG": _LOG,
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": _TRAP,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
#: what libseccomp calls the architectures of the spec; all it knows, of which only x86 ones matter in our
#: guests
_ARCHITECTURES = [
    "X86",
    "X86_64",
    "X32",
    "ARM",
    "AARCH64",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PPC",
    "PPC64",
    "PPC64LE",
    "S390",
    "S390X",
    "PARISC",
    "PARISC64",
    "RISCV64",
    "LOONGARCH64",
    "M68K",
    "SH",
    "SHEB",
]
#: SECCOMP_FILTER_FLAG_*; TSYNC is accepted and meaningless, since the filter is loaded by a single thread
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_NATIVE, _ATTRIBUTE_NO_NEW_PRIVILEGES = 0xC000003E, 3
_UNKNOWN_SYSCALL = -1


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


class Filter(Record):
    """`program` is an array of struct sock_filter, `flags` are those of seccomp(2)."""

    program: bytes
    flags: int


def compile_profile(section: Mapping[str, Any], path: str = "linux.seccomp") -> Filter:
    """Compile a section; raises SpecError naming the JSON path, HostError when libseccomp is missing."""
    library = _library()
    default = _action(section.get("defaultAction"), section.get("defaultErrnoRet"), f"{path}.defaultAction")
    flags = _flags(section.get("flags"), f"{path}.flags")
    context = library.seccomp_init(ctypes.c_uint32(default))
    if not context:
        raise BugError("libseccomp refused a default action that we know")
    try:
        # no_new_privs is process.noNewPrivileges, which is not ours to decide
        library.seccomp_attr_set(context, _ATTRIBUTE_NO_NEW_PRIVILEGES, 0)
        _add_architectures(library, context, section.get("architectures"), f"{path}.architectures")
        newest = 0
        for index, entry in enumerate(_list(section.get("syscalls"), f"{path}.syscalls")):
            where = f"{path}.syscalls[{index}]"
            newest = max(newest, _add_entry(library, context, entry, default, where))
        program = _export(library, context)
    finally:
        library.seccomp_release(context)
    return Filter(program=_answer_enosys(program, newest, default), flags=flags)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise HostError(
            "library not found: libseccomp.so.2",
            hint="apt-get install libseccomp2",
            code="libseccomp-missing",
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    for name in ("attr_set", "arch_add", "arch_remove", "rule_add_array", "export_bpf", "release"):
        function = getattr(library, f"seccomp_{name}")
        function.argtypes = {
            "attr_set": (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32),
            "arch_add": (ctypes.c_void_p, ctypes.c_uint32),
            "arch_remove": (ctypes.c_void_p, ctypes.c_uint32),
            "rule_add_array": (
                ctypes.c_void_p,
                ctypes.c_uint32,
                ctypes.c_int,
                ctypes.c_uint,
                ctypes.c_void_p,
            ),
            "export_bpf": (ctypes.c_void_p, ctypes.c_int),
            "release": (ctypes.c_void_p,),
        }[name]
    return library


def _list(value: Any, where: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where}: not a list")
    return value


def _action(name: Any, number: Any, where: str) -> int:
    """An action with its errno: EPERM when none is given, as in runc."""
    if name == "SCMP_ACT_NOTIFY":
        raise SpecError(f"{where}: SCMP_ACT_NOTIFY is not supported")
    if not isinstance(name, str) or name not in _ACTIONS:
        raise SpecError(f"{where}: unknown action: {name!r:.80}")
    action = _ACTIONS[name]
    if action not in (_ERRNO, _TRACE):
        return action  # an errno given with it is ignored, as in runc
    if number is None:
        number = errno.EPERM
    if not isinstance(number, int) or not 0 <= number <= 0xFFFF:
        raise SpecError(f"{where}: not an errno: {number!r}")
    return action | number


def _flags(names: Any, where: str) -> int:
    flags = 0
    for index, name in enumerate(_list(names, where)):
        if not isinstance(name, str) or name not in _FLAGS:
            raise SpecError(f"{where}[{index}]: unknown or unsupported flag: {name!r:.80}")
        flags |= _FLAGS[name]
    return flags


def _add_architectures(library: ctypes.CDLL, context: int, names: Any, where: str) -> None:
    for index, name in enumerate(_list(names, where)):
        short = name.removeprefix("SCMP_ARCH_") if isinstance(name, str) else ""
        if short not in _ARCHITECTURES or not name.startswith("SCMP_ARCH_"):
            raise SpecError(f"{where}[{index}]: unknown architecture: {name!r:.80}")
        token = library.seccomp_arch_resolve_name(short.lower().encode())
        result = library.seccomp_arch_add(context, token) if token else 0
        # an architecture of other byte order cannot share a filter with ours, and never runs here
        if result < 0 and -result not in (errno.EEXIST, errno.EINVAL, errno.EDOM):
            raise SpecError(f"{where}[{index}]: {os.strerror(-result)}: {name}")


def _add_entry(library: ctypes.CDLL, context: int, entry: Any, default: int, where: str) -> int:
    """Add the rules of one entry; returns the highest native number that it names."""
    if not isinstance(entry, dict):
        raise SpecError(f"{where}: not an object")
    action = _action(entry.get("action"), entry.get("errnoRet"), f"{where}.action")
    comparisons = list(_comparisons(entry.get("args"), f"{where}.args"))
    names = _list(entry.get("names"), f"{where}.names")
    if not names:
        raise SpecError(f"{where}.names: empty")
    newest = 0
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name or "\0" in name:
            raise SpecError(f"{where}.names[{index}]: not a name: {name!r:.80}")
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN_SYSCALL:
            continue
        newest = max(newest, number)
        if action != default:  # libseccomp refuses such rules, and they would change nothing
            _add_rules(library, context, action, number, comparisons, f"{where}.names[{index}]")
    return newest


def _comparisons(args: Any, where: str) -> Iterator[_Compare]:
    for index, arg in enumerate(_list(args, where)):
        here = f"{where}[{index}]"
        if not isinstance(arg, dict):
            raise SpecError(f"{here}: not an object")
        operator = _OPERATORS.get(arg.get("op", ""))
        if operator is None:
            raise SpecError(f"{here}.op: unknown operator: {arg.get('op')!r:.80}")
        position = arg.get("index")
        if not isinstance(position, int) or not 0 <= position <= 5:
            raise SpecError(f"{here}.index: not 0 to 5: {position!r}")
        values = [arg.get("value", 0), arg.get("valueTwo", 0)]
        for key, value in zip(("value", "valueTwo"), values, strict=True):
            if not isinstance(value, int) or not 0 <= value < 1 << 64:
                raise SpecError(f"{here}.{key}: not an unsigned number of 64 bits: {value!r}")
        yield _Compare(position, operator, *values)


def _add_rules(
    library: ctypes.CDLL, context: int, action: int, number: int, comparisons: list[_Compare], where: str
) -> None:
    """All comparisons must hold; but two on the same argument become rules of their own, as in runc."""
    positions = [comparison.index for comparison in comparisons]
    apart = len(set(positions)) != len(positions)
    groups = [[comparison] for comparison in comparisons] if apart else [comparisons]
    for group in groups:
        array = (_Compare * len(group))(*group)
        result = library.seccomp_rule_add_array(context, action, number, len(group), array)
        # a second rule that says the same, or one that this architecture cannot have: runc ignores them too
        if result < 0 and -result not in (errno.EEXIST, errno.EDOM):
            raise SpecError(f"{where}: {os.strerror(-result)}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result < 0:
            raise HostError(f"libseccomp cannot write the program: {os.strerror(-result)}", code="libseccomp")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _answer_enosys(program: bytes, newest: int, default: int) -> bytes:
    """Put in front: a native call with a number above `newest` does not exist, so that libraries try an older
    one.

    Only where the default refuses with an errno other than ENOSYS or kills, as in runc.
    """
    refuses = default & 0xFFFF0000 in (_ERRNO, _KILL_PROCESS, _KILL_THREAD, _TRAP)
    if not newest or not refuses or default == _ERRNO | errno.ENOSYS:
        return program
    load, equal, above, at_least, answer = 0x20, 0x15, 0x25, 0x35, 0x06
    lines = (
        (load, 0, 0, 4),  # seccomp_data.arch
        (equal, 0, 4, _NATIVE),
        (load, 0, 0, 0),  # seccomp_data.nr
        (at_least, 2, 0, 0x40000000),  # x32 has a table of its own
        (above, 0, 1, newest),
        (answer, 0, 0, _ERRNO | errno.ENOSYS),
    )
    return b"".join(struct.pack("=HBBI", *line) for line in lines) + program
