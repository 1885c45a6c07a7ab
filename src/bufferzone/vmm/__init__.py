"""Virtual machine monitors: the interface that all above knows, and the VMMs that have it. QEMU so far."""
