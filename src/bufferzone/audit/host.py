"""Settings of the machine that weaken the walls, as its kernel tells them in /proc and /sys. Reads only.

Sources: Documentation/admin-guide/hw-vuln, Documentation/admin-guide/sysctl/kernel.rst, core(5),
Documentation/admin-guide/mm/ksm.rst, user_namespaces(7).
"""

from __future__ import annotations

import os
import stat

from bufferzone.audit.finding import Collector
from bufferzone.linux import kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.audit.finding import Finding

_VULNERABILITIES = "sys/devices/system/cpu/vulnerabilities"
_ON = ("1", "Y", "y")


class Host:
    """Files below a root directory, which a test may make; `kvm_probe`: why KVM is not usable, or empty."""

    def __init__(self, root: str = "/", *, kvm_reason: str | None = None) -> None:
        self._root = root
        self._kvm_reason = kvm.probe().reason if kvm_reason is None else kvm_reason

    def read(self, path: str) -> str:
        """The first line; empty where there is no such file or it may not be read."""
        try:
            with open(os.path.join(self._root, path), encoding="utf-8", errors="replace") as file:
                return file.readline().strip()
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        """What is in a directory; empty where there is none."""
        try:
            return sorted(os.listdir(os.path.join(self._root, path)))
        except OSError:
            return []

    def mode(self, path: str) -> int:
        """Permission bits; 0 where there is no such file."""
        try:
            return stat.S_IMODE(os.stat(os.path.join(self._root, path)).st_mode)
        except OSError:
            return 0

    @property
    def kvm_reason(self) -> str:
        """Why KVM is not usable; empty: it is."""
        return self._kvm_reason


def check(host: Host) -> list[Finding]:
    """Everything about the machine."""
    findings = Collector("host")
    for part in (_virtualization, _mitigations, _memory, _kernel, _layers):
        part(host, findings)
    return findings.found


def _virtualization(host: Host, findings: Collector) -> None:
    if host.kvm_reason:
        message = f"no usable KVM: {host.kvm_reason}"
        findings.add(
            "no-kvm", "medium", message, "guests are emulated, which is no security boundary for QEMU"
        )
    for module in ("kvm_intel", "kvm_amd"):
        if host.read(f"sys/module/{module}/parameters/nested") in _ON:
            message = "nested virtualization is on: more of KVM's code can be reached from a guest"
            findings.add("nested-kvm", "low", message, f"options {module} nested=0 in /etc/modprobe.d")
    if "hypervisor" in _flags(host):
        message = "this machine is itself a virtual machine: the wall below it is somebody else's"
        findings.add("virtual-host", "info", message)
    if host.mode("dev/kvm") & 0o006:
        message = "anybody may open /dev/kvm, and reach what KVM has of faults"
        findings.add("kvm-open", "low", message, "mode 0660, group kvm: see udev(7)")


def _flags(host: Host) -> list[str]:
    path = os.path.join(host._root, "proc/cpuinfo")
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            line = next((each for each in file if each.startswith("flags")), "")
    except OSError:
        return []
    return line.partition(":")[2].split()


def _mitigations(host: Host, findings: Collector) -> None:
    for name in host.names(_VULNERABILITIES):
        said = host.read(f"{_VULNERABILITIES}/{name}")
        if said.startswith("Vulnerable"):
            findings.add("cpu-vulnerable", "medium", f"{name}: {said}", "newer microcode, no mitigations=off")
        elif "vulnerable" in said.lower():
            findings.add("cpu-partly", "low", f"{name}: {said}", "nosmt where guests do not trust each other")
    if "mitigations=off" in host.read("proc/cmdline").split():
        findings.add("mitigations-off", "high", "the kernel runs with mitigations=off", "boot without it")
    if host.read("sys/devices/system/cpu/smt/active") == "1":
        message = "two guests may share a core (SMT)"
        findings.add("smt", "low", message, "nosmt, or core scheduling, where guests do not trust each other")


def _memory(host: Host, findings: Collector) -> None:
    if host.read("sys/kernel/mm/ksm/run") == "1":
        message = "equal pages are merged (KSM): one guest can tell what another's memory holds"
        findings.add("ksm", "medium", message, "echo 2 >/sys/kernel/mm/ksm/run; ours are not offered to it")
    if host.read("proc/sys/kernel/randomize_va_space") not in ("2", ""):
        findings.add(
            "aslr", "medium", "address spaces are not randomized", "sysctl kernel.randomize_va_space=2"
        )


def _kernel(host: Host, findings: Collector) -> None:
    pattern = host.read("proc/sys/kernel/core_pattern")
    if pattern.startswith("|"):
        message = (
            f"a crash starts a program as root, {pattern.split()[0]!a}: core(5) does not ask RLIMIT_CORE"
        )
        findings.add("core-pattern", "low", message, "a crashed hypervisor's memory is that program's input")
    rows = (
        ("kernel/unprivileged_bpf_disabled", "0", "bpf-open", "medium", "anybody may load BPF programs"),
        (
            "kernel/kptr_restrict",
            "0",
            "kernel-pointers",
            "low",
            "the kernel's addresses are told to everybody",
        ),
        ("kernel/yama/ptrace_scope", "0", "ptrace", "low", "processes of one user may trace each other"),
        ("kernel/modules_disabled", "0", "modules", "info", "kernel modules can be loaded"),
    )
    for path, weak, id, severity, message in rows:
        if host.read(f"proc/sys/{path}") == weak:
            findings.add(id, severity, message, f"sysctl {path.replace('/', '.')}")
    users = host.read("proc/sys/user/max_user_namespaces")
    if host.read("proc/sys/kernel/unprivileged_userns_clone") != "0" and users not in ("", "0"):
        message = "ordinary users may make user namespaces, and reach more of the kernel in them"
        findings.add(
            "user-namespaces", "info", message, "rootless containers need it; else user.max_user_namespaces=0"
        )


def _layers(host: Host, findings: Collector) -> None:
    modules = host.read("sys/kernel/security/lsm").split(",")
    if not {"apparmor", "selinux"} & set(modules):
        findings.add("no-lsm", "info", "neither AppArmor nor SELinux is active: one line of defence less")
    if host.names("sys/fs/cgroup") and "cgroup.controllers" not in host.names("sys/fs/cgroup"):
        findings.add("cgroup-v1", "info", "cgroup version 1: limits of a sandbox are in several hierarchies")
