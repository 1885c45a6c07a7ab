"""bpf(2), as far as a device filter of a cgroup needs it: load a program, attach it, replace it.

Source: bpf(2), include/uapi/linux/bpf.h (union bpf_attr), Documentation/admin-guide/cgroup-v2.rst "Device
controller".
"""

from __future__ import annotations

import ctypes
import os
import struct

from bufferzone.linux.libc import syscall

_BPF = 321
_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
_INSTRUCTION_BYTES = 8
#: of loading, which a signal breaks off
_ATTEMPTS = 10


def load_device_filter(program: bytes) -> int:
    """Have the kernel check and take a program of struct bpf_insn; returns its descriptor. Raises OSError.

    A signal that comes meanwhile, such as that of another container's end, breaks the check off with EAGAIN
    (kernel/bpf/verifier.c, do_check); as libbpf does, it is asked again.
    """
    code, license_ = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ",
        _TYPE_CGROUP_DEVICE,
        len(program) // _INSTRUCTION_BYTES,
        ctypes.addressof(code),
        ctypes.addressof(license_),
    )
    for _ in range(_ATTEMPTS - 1):
        try:
            return syscall(_BPF, "bpf", _PROG_LOAD, attributes, len(attributes))
        except BlockingIOError:
            continue
    return syscall(_BPF, "bpf", _PROG_LOAD, attributes, len(attributes))


def attach_device_filter(cgroup: str, program: int, instead_of: int = -1) -> None:
    """Let `program` decide, too, which devices the processes of the cgroup v2 directory open or make.

    A filter of a cgroup below is asked as well, so that a container can have containers. `instead_of`: the
    one that it replaces, in one step. Raises OSError.
    """
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = _ALLOW_MULTI | (_REPLACE if instead_of >= 0 else 0)
        attributes = struct.pack("=5I", directory, program, _ATTACH_CGROUP_DEVICE, flags, max(instead_of, 0))
        syscall(_BPF, "bpf", _PROG_ATTACH, attributes, len(attributes), path=cgroup)
    finally:
        os.close(directory)
