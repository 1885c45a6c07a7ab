"""Makes one container on a Linux: namespaces, mounts, cgroup, execve. Knows no VM; runs behind the wall."""
