"""Keys of our own in the process object of an exec, which is OCI's else, between a verb and the guest."""

from __future__ import annotations

#: the path below the container's cgroup that it joins, `/` for that one itself; without the key it joins
#: the container's, or that of its init where the container's takes no processes
CGROUP = "bufferzone.cgroup"
#: it has a cgroup of its own below the container's, so that what it uses is counted and it can be ended with
#: all it started; the value is an object, `memory`: a limit in bytes, 0: none
MEASURED = "bufferzone.measured"
#: in place of a program: one operation on files as its user; the value is an object, see `container.files`
FILES = "bufferzone.files"
