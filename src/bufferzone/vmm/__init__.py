"""Drivers of hypervisors: argv as a pure function, a started VMM as an object. QEMU so far."""
