#!/usr/bin/python3 -ISB
"""The guest's /sbin/modprobe, which its kernel starts when a module is missing: `modprobe -q -- fs-overlay`.

Copied into the image as it is; only its test imports it on the host. Knows the image's modules only, by
name and exact alias, and ignores every option. Exit status 1 when the module is not there or does not load.
So overlay, EROFS, veth and vsock cost the boot nothing, and are there for who uses them.
"""

import errno
import os
import sys

TABLE = "/etc/bufferzone/modules.dep"


def paths_of(wanted: str, table: str) -> list[str]:
    """The files to load for a module or alias, in order; empty if unknown. `table`: lines `KEY PATH...`."""
    keys = (wanted, wanted.replace("-", "_"))
    for line in table.splitlines():
        key, *paths = line.split(" ")
        if key in keys:
            return paths
    return []


def load(path: str) -> None:
    """finit_module(2); a module that is loaded already is fine."""
    sys.path.append("/usr/lib/bufferzone")
    from bufferzone.linux.process import load_module

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        load_module(fd)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    finally:
        os.close(fd)


def main() -> int:
    with open(TABLE, encoding="utf-8") as file:
        paths = paths_of(sys.argv[-1], file.read())
    for path in paths:
        load(path)
    return 0 if paths else 1


if __name__ == "__main__":
    sys.exit(main())
