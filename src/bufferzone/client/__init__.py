"""Asks for, starts and removes sandboxes: what commands, library and containerd's `start` share."""
