"""`bz bench`: measures bufferzone against other runtimes and against the floor, a bare QEMU that restores.

Started as a program by `cli/bz/bench.py`; nothing imports it. It is above every other unit, since the floor
is driven by hand.
"""
