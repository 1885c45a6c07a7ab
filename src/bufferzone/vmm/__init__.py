"""Virtual machine monitors behind one interface, which all above knows: QEMU, and the host without a VM."""
