"""QEMU: its command line, its control channel, its snapshots. Nothing outside of this package knows QMP."""
