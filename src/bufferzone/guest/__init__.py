"""The agent: runs inside the VM, as PID 1, and imports nothing of ours but `wire`, `linux`, `errors`."""
