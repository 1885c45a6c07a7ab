"""Keys of our own in the process object of an exec, which is OCI's else, between a verb and the guest."""

from __future__ import annotations

#: the path below the container's cgroup that it joins, `/` for that one itself; without the key it joins
#: the container's, or that of its init where the container's takes no processes
CGROUP = "bufferzone.cgroup"
