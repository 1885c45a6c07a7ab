"""Saved VMs: templates that many are restored from, checkpoints that one was saved into."""
