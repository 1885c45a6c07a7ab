"""The kernel command line of the guest, as data: every argument with its reason on the line above it.

Measured under TCG on QEMU 7.2 with Debian's 6.1 cloud kernel, from the start of QEMU to an open agent port,
best of five, noise about 30 ms: 2,040 ms without `cryptomgr.notests`, 1,845 ms with it. Tried and left out,
since nothing could be seen: tsc=reliable, random.trust_cpu=on (already the kernel's
default), audit=0, 8250.nr_uarts=1, noreplace-smp, rcupdate.rcu_expedited=1, swiotlb=noforce, i8042.*,
pci=lastbus=0, apparmor=0, lsm=, ima=off, nopti, noxsave, init_on_alloc=0. acpi=off saves 200 ms
but takes power-off and PCI hotplug with it. mitigations=off saves nothing under TCG, and under KVM it would
open the walls inside the guest: never. nokaslr would change nothing: a PVH start does not pass the code
that randomizes.

The lean kernel has no ciphers' self-tests, tracefs or watchdog to be told of.
"""

from __future__ import annotations

ARGUMENTS: tuple[str, ...] = (
    # the serial port is the log that explains a failed boot
    "console=ttyS0",
    # every printed byte is an emulated register write; warnings and panics are still printed
    "quiet",
    # a panicking guest must end: QEMU runs with -no-reboot, so an immediate reset becomes the end of the VM
    "panic=-1",
    # the kernel waits 40 ms for ten ticks of the timer, and panics if a busy host did not run QEMU meanwhile
    "no_timer_check",
    # self-tests of ciphers take 190 ms under TCG; the distribution has run them on its own build
    "cryptomgr.notests",
    # tracefs has 10,000 inodes, which nobody looks at and which are 8 MiB of every clone's memory
    "initcall_blacklist=tracer_init_tracefs",
    # an idle guest is to sleep: these three woke it 35 times a second, and fifty of them took 13 % of a CPU.
    # kcompactd would look every half second whether memory is worth compacting
    "sysctl.vm.compaction_proactiveness=0",
    # a guest that hangs is its host's to notice
    "nowatchdog",
    # the TSC is the hypervisor's, and so is the timer that it would be compared with every half second
    "tsc=nowatchdog",
)

#: of the stock kernel's: what only its options ask for
_STOCK_ONLY = ("cryptomgr.notests", "initcall_blacklist=tracer_init_tracefs", "nowatchdog")
LEAN_ARGUMENTS = (
    *(argument for argument in ARGUMENTS if argument not in _STOCK_ONLY),
    # its drivers are built in, and would each show an interface of their own beside `lo` from the start
    "fb_tunnels=none",
    "dummy.numdummies=0",
    "ifb.numifbs=0",
)
