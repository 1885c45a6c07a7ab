"""Functions of the host's kernel, as its tracer tells of them."""

import os

import pytest

from bufferzone.bench import kernel_functions
from bufferzone.errors import HostError

#: lines of trace_pipe, in the form of Documentation/trace/ftrace.rst
LINES = b"""\
 qemu-system-x86-1207    [001] ..... 53.250651: vfs_read <-ksys_read
 qemu-system-x86-1207    [001] d.... 53.250652: __fdget_pos <-ksys_read
 CPU 0/KVM-1209          [000] d.h1. 53.250660: hrtimer_interrupt <-__sysvec_apic_timer_interrupt
 CPU 0/KVM-1209          [000] ..s1. 53.250661: rcu_core_si <-handle_softirqs
CPU:1 [LOST 42 EVENTS]
 CPU 0/KVM-1209          [000] ..... 53.250670: kvm_arch_vcpu_ioctl_run [kvm] <-kvm_vcpu_ioctl [kvm]
 CPU 0/KVM-1209          [000] ...1. 53.250671: vfs_read <-ksys_read
""".splitlines()


def test_a_function_counts_once_and_not_where_it_interrupted():
    assert kernel_functions.functions(LINES) == ({"vfs_read", "__fdget_pos", "kvm_arch_vcpu_ioctl_run"}, 42)


def test_a_kernel_that_traces_no_functions_is_told_in_one_line(tmp_path):
    (tmp_path / "instances").mkdir()
    (tmp_path / "available_tracers").write_text("blk nop\n")
    with (
        pytest.raises(
            HostError, match="cannot trace functions of the kernel: no tracer named function"
        ) as caught,
        kernel_functions.Tracer([os.getpid()], str(tmp_path)),
    ):
        pass
    assert caught.value.hint == "it takes root of the host itself, and CONFIG_FUNCTION_TRACER"
    assert list((tmp_path / "instances").iterdir()) == []
