"""Run by test_jail: in a mount namespace of its own, bind into a shared tree after the helper has started."""

import os
import sys

from bufferzone import jail
from bufferzone.model import Bind
from bufferzone.storage import share

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
from unit.shell_calls import SHELL

base = sys.argv[1]
os.mkdir(f"{base}/tree")
os.mkdir(f"{base}/data")
with open(f"{base}/data/file", "w") as file:
    file.write("late\n")
share.own_namespace()
with share.Tree(f"{base}/tree") as tree:
    confined = jail.Jail(
        name="follower",
        uid=jail.UID_BASE + 3,
        gid=jail.UID_BASE + 3,
        log_fd=1,
        calls=SHELL,
        binds=(
            jail.JailBind(source="/usr/bin/busybox", target="/busybox"),
            jail.JailBind(source=tree.fd, target="/tree", follow=True),
        ),
    )
    loop = "until /busybox cat /tree/data/file; do /busybox usleep 10000; done; >/tree/x || echo read-only"
    with jail.start(["/busybox", "sh", "-c", f"exec 2>/dev/null; {loop}"], confined) as child:
        tree.add(Bind(source=f"{base}/data", name="data", read_only=True))
        sys.exit(0 if child.wait_exit(20) == 0 else 1)
