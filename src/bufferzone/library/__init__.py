"""The Python library: sandboxes as objects. `import bufferzone` exports it and loads it on first use.

One core, `Sandbox` and what it hands out, blocks and may be used from many threads; `bufferzone.aio` is
derived from it. It stands on `workload` and `client`, as the commands do, and prints nothing.
"""
