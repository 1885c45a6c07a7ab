"""Firecracker: its API, its jail, its snapshots. Nothing outside of this package knows the API."""
