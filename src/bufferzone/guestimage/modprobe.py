#!/usr/bin/python3 -ISB
"""The guest's /sbin/modprobe, which its kernel starts when a module is missing: `modprobe -q -- fs-overlay`.

Copied into the image as it is; only its test imports it on the host. Knows the image's modules only
(guestimage/loadable.py has the list), by name and exact alias, and ignores every option. Who may make the
kernel ask is the kernel's decision, as on any host. Exit status 1 when the module is not there or does not
load.
"""

import errno
import os
import sys

TABLE = "/etc/bufferzone/modules.dep"
MODULES = "/usr/lib/modules"


def modules_of(wanted: str, table: str) -> list[str]:
    """Names to load for a module or alias, in order; empty if unknown. `table`: lines `KEY NAME...`.

    An alias may stand for several modules, such as nft-expr-2-fib: each is loaded with what it needs.
    """
    keys = (wanted, wanted.replace("-", "_"))
    found: dict[str, None] = {}
    for line in table.splitlines():
        key, *names = line.split(" ")
        if key in keys:
            found.update(dict.fromkeys(names))
    return list(found)


def load(name: str) -> None:
    """finit_module(2), init_module(2) for one that is deflated; a module that is loaded already is fine."""
    if os.path.isdir(f"/sys/module/{name}"):
        return
    sys.path.append("/usr/lib/bufferzone")
    from bufferzone.linux import process

    path = f"{MODULES}/{os.uname().release}/{name}.ko"
    try:
        if os.path.exists(path):
            with open(path, "rb", buffering=0) as file:
                process.load_module(file.fileno())
        else:
            import zlib

            with open(f"{path}.z", "rb", buffering=0) as file:
                process.load_module_bytes(zlib.decompress(file.readall()))
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def main() -> int:
    with open(TABLE, encoding="utf-8") as file:
        names = modules_of(sys.argv[-1], file.read())
    for name in names:
        load(name)
    return 0 if names else 1


if __name__ == "__main__":
    sys.exit(main())
