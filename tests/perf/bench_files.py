"""File I/O of a container beside the same program on the host, in one run. Asserts nothing.

    python3 tests/perf/bench_files.py [MIB]

One Python program works on a volume (virtiofs), on a tmpfs of the guest and in the same host directory. The
ratio of tmpfs to host is what emulation costs, that of volume to tmpfs what virtiofs does. Files that are
read were written by the host, so they are in its page cache and not in the guest's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from vm.verbs import Runtime, bundle, config  # noqa: E402

PYTHON = "/usr/bin/python3"
ROUNDS = 3
SMALL = 100
PROGRAM = """
import json, os, random, sys, time
place, given, mib, small = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
block, page, seen = b"x" * (1 << 20), b"y" * 4096, {}
offsets = random.Random(1).sample(range(mib * 256), min(512, mib * 256))
if not os.path.exists(given):
    with open(given, "wb") as file:
        file.write(block * mib)
def measure(name, count, work):
    start = time.perf_counter()
    work()
    seen[name] = count / (time.perf_counter() - start)
def write():
    fd = os.open(place + "/new", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    for _ in range(mib):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)
def read_pages():
    fd = os.open(given, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for at in offsets:
        os.pread(fd, 4096, at * 4096)
    os.close(fd)
def read():
    fd = os.open(given, os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)
def write_pages():
    fd = os.open(place + "/new", os.O_RDWR)
    for at in offsets:
        os.pwrite(fd, page, at * 4096)
    os.fsync(fd)
    os.close(fd)
def files():
    for n in range(small):
        with open(f"{place}/{n}", "wb") as file:
            file.write(page)
    for n in range(small):
        os.unlink(f"{place}/{n}")
measure("write, 1 MiB each  MiB/s", mib, write)
measure("read pages, random    /s", len(offsets), read_pages)
measure("read, 1 MiB each   MiB/s", mib, read)
measure("write pages, random   /s", len(offsets), write_pages)
measure("make, remove files    /s", small, files)
print(json.dumps(seen))
"""


def prepare(base: Path) -> Path:
    """A bundle that waits, with the host's Python below /usr and the volume at /data."""
    made = bundle(base / "bundle", annotations={"bufferzone.memory": "1024"})
    mounts = [*config("")["mounts"], {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]
    binds = [("/usr", "/usr", "ro"), (str(base / "data"), "/data", "rw")]
    for source, target, mode in binds:
        mounts.append({"destination": target, "type": "bind", "source": source, "options": ["rbind", mode]})
    for name in ("lib", "lib64"):
        os.symlink(f"usr/{name}", made / "rootfs" / name)
    (base / "data").mkdir()
    value = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**value, "mounts": mounts}))
    return made


def give(base: Path, name: str, mib: int) -> None:
    (base / "data" / name).write_bytes(b"x" * (mib << 20))


def main(mib: int) -> None:
    rows: dict[str, dict[str, list[float]]] = {"host": {}, "tmpfs": {}, "volume": {}}
    with tempfile.TemporaryDirectory(prefix="bz-perf-", dir="/var/tmp") as directory:
        base = Path(directory)
        runtime = Runtime(base / "root")
        try:
            runtime.run("files", prepare(base))
            for n in range(ROUNDS):
                for name in ("host", f"volume{n}"):
                    give(base, name, mib)
                places = {
                    "host": (str(base / "data"), str(base / "data" / "host")),
                    "tmpfs": ("/tmp", "/tmp/given"),
                    "volume": ("/data", f"/data/volume{n}"),
                }
                for where, (place, given) in places.items():
                    words = [PYTHON, "-I", "-S", "-c", PROGRAM, place, given, str(mib), str(SMALL)]
                    command = words if where == "host" else runtime.command("exec", "files", *words)
                    done = subprocess.run(command, capture_output=True, check=True)
                    for what, speed in json.loads(done.stdout).items():
                        rows[where].setdefault(what, []).append(speed)
        finally:
            runtime.close()
    print(
        f"{'median of ' + str(ROUNDS):25} {'host':>9} {'tmpfs':>9} {'volume':>9}   volume/host volume/tmpfs"
    )
    for what in rows["host"]:
        host, tmpfs, volume = (sorted(rows[where][what])[ROUNDS // 2] for where in rows)
        numbers = f"{host:9.0f} {tmpfs:9.0f} {volume:9.0f}"
        print(f"{what:25} {numbers}   {volume / host:11.3f} {volume / tmpfs:12.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
