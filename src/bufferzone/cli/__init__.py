"""The two commands: `bufferzone` for callers (OCI verbs), `bz` for people. They talk to shims."""
