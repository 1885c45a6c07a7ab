"""The only ctypes and ioctl of the project: thin wrappers that name the call they make.

Every wrapper raises `OSError` whose filename is what it acted on. x86-64 system call numbers.
"""
