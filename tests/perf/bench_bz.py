"""The bars of `bz` and the Python library with real VMs, as ratios within one run. Asserts nothing.

    python3 tests/perf/bench_bz.py [ROUNDS] [PART...]

Compared are one `true` in a warm sandbox through the library and by `bufferzone exec`; `bz run` of a pulled
image and `bufferzone run` of a bundle with the same files; `bz pull` and `podman pull` from one registry on
loopback, of Debian's Python and git; 1,000 runs in one sandbox, whose shim's memory is told; 20 sandboxes at
once. Ratios are of medians, and in brackets of the best: others may be using the machine. Settings, images
and state are its own. Needs root, Podman, docker-registry and skopeo.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from bufferzone import Sandbox, config, state  # noqa: E402
from bufferzone.guestimage import current  # noqa: E402
from bufferzone.linux import mount as mnt  # noqa: E402
from bufferzone.linux.process import CLONE_NEWNS, unshare  # noqa: E402
from fakes import oci_layout, registry  # noqa: E402
from vm import private, verbs  # noqa: E402

BIN = HERE.parent / "bin"
RUNS, AT_ONCE, MOST_PULLS = 1000, 20, 5


def seconds(work: functools.partial[object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Bench:
    """Settings, stores and state below `base`, in a mount namespace of this process."""

    def __init__(self, base: Path) -> None:
        settings = config.load()
        image = current.current_image(
            settings.image_store, lambda line: print(f"image: {line}"), settings.guest
        )
        rows = {"image": image.directory, "image_store": str(base / "images")}
        (base / "settings").write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in rows.items())
        )
        unshare(CLONE_NEWNS)
        mnt.mount("", "/", flags=mnt.MS_REC | mnt.MS_PRIVATE)
        private.show_settings(str(base / "settings"))
        self.base, self.root = base, str(base / "root")
        os.mkdir(self.root, 0o700)
        self.registry = registry.Registry(base / "registry")

    def close(self) -> None:
        """End the registry, and let go of Podman's storage, which is a mount of its own."""
        self.registry.close()
        with contextlib.suppress(OSError):
            mnt.unmount(str(self.base / "podman" / "root" / "overlay"), mnt.MNT_DETACH)

    def program(self, name: str, *words: str) -> functools.partial[object]:
        """A run of `bz` or `bufferzone`, to be called."""
        command = [str(BIN / name), "--root", self.root, *words]
        return functools.partial(
            subprocess.run, command, env={"PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL, check=True
        )

    def sandbox(self) -> Sandbox:
        """One of the host's /usr."""
        return Sandbox(root=self.root, memory_mib=128)

    def shim_kib(self, box: Sandbox) -> int:
        """Anonymous memory of its shim."""
        pid = state.owner_pid(f"{self.root}/{box.name}")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def times_of(rounds: int, **works: functools.partial[object]) -> dict[str, list[float]]:
    """The times of each, after one round that does not count. Each round begins with another one: who comes
    first finds a machine that still clears away after the last.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for round_ in range(rounds + 1):
        for at in range(len(names)):
            name = names[(round_ + at) % len(names)]
            times[name].append(seconds(works[name]))
    return {name: values[1:] for name, values in times.items()}


def tell(what: str, times: list[float], beside: list[float], bar: float) -> None:
    """One ratio."""
    middle = statistics.median(times) / statistics.median(beside)
    print(f"{what}: {middle:.2f} of it ({min(times) / min(beside):.2f}; bar {bar})", flush=True)


def tell_of(what: str, times: list[float]) -> None:
    """What ratios are of."""
    print(f"{what}: {1000 * statistics.median(times):.0f} ms ({1000 * min(times):.0f})", flush=True)


def ask(bench: Bench, rounds: int) -> None:
    """One `true` in a sandbox that runs."""

    def fresh() -> None:
        with Sandbox.attach(box.name, root=bench.root) as again:
            again.run(["true"])

    with bench.sandbox() as box:
        found = times_of(
            rounds,
            exec=bench.program("bufferzone", "exec", box.name, "true"),
            kept=functools.partial(box.run, ["true"]),
            fresh=functools.partial(fresh),
        )
        tell_of("bufferzone exec", found["exec"])
        tell("sb.run through the kept connection", found["kept"], found["exec"], 0.6)
        tell("sb.run through a new connection", found["fresh"], found["exec"], 1.3)


def grow(bench: Bench, rounds: int) -> None:
    """The shim's memory over many runs."""
    with bench.sandbox() as box:
        for done in range(RUNS + 1):
            if done in (100, RUNS // 2, RUNS):
                print(f"shim after {done} runs: {bench.shim_kib(box)} KiB", flush=True)
            box.run(["true"])


def start(bench: Bench, rounds: int) -> None:
    """`bz run` of an image that is there, and the OCI verb on a bundle with the same files."""
    made = verbs.bundle(bench.base / "bundle", **verbs.config("exec true"))
    layout = oci_layout.write(bench.base / "layout", [oci_layout.layer({}, busybox=True)], {"Cmd": ["true"]})
    image = bench.registry.push(layout, "small")
    bench.program("bz", "pull", "--quiet", "--tls-verify=false", image)()
    found = times_of(
        rounds,
        bz=bench.program("bz", "run", "--network", "none", image, "sh", "-c", "exec true"),
        oci=bench.program("bufferzone", "run", "--bundle", str(made), "one"),
    )
    tell_of("bufferzone run", found["oci"])
    tell("bz run of a pulled image", found["bz"], found["oci"], 1.3)


def pull(bench: Bench, rounds: int) -> None:
    """The same image from the same registry, into an empty store each time."""
    layout = oci_layout.of_packages(bench.base / "python", ["python3", "git", "coreutils"])
    image = bench.registry.push(layout, "python")
    options = ("root", "runroot", "tmpdir", "network-config-dir")
    places = [f"--{name}={bench.base / 'podman' / name}" for name in options]

    def podman(*words: str) -> None:
        subprocess.run(["podman", *places, *words], stdout=subprocess.DEVNULL, check=True)

    times: dict[str, list[float]] = {"bz": [], "podman": []}
    for _ in range(min(rounds, MOST_PULLS) + 1):
        ours = bench.program("bz", "pull", "--quiet", "--tls-verify=false", image)
        times["bz"].append(seconds(ours))
        bench.program("bz", "image", "rm", image)()
        theirs = functools.partial(podman, "pull", "--quiet", "--tls-verify=false", image)
        times["podman"].append(seconds(theirs))
        podman("rmi", "--all", "--force")
    tell_of("podman pull", times["podman"][1:])
    tell("bz pull", times["bz"][1:], times["podman"][1:], 2)


def at_once(bench: Bench, rounds: int) -> None:
    """Sandboxes from one process."""

    def one(number: int) -> bool:
        with bench.sandbox() as box:
            return box.run(["echo", str(number)]).stdout == f"{number}\n"

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        right = sum(threads.map(one, range(AT_ONCE)))
    print(f"{AT_ONCE} sandboxes at once: {right} right, after {time.perf_counter() - began:.1f} s")


PARTS = {"ask": ask, "start": start, "pull": pull, "grow": grow, "at-once": at_once}


def main(rounds: int, parts: list[str]) -> None:
    """All of it, or some parts."""
    if not (registry.HERE and shutil.which("podman") and os.geteuid() == 0):
        sys.exit("needs root, podman, docker-registry and skopeo")
    with tempfile.TemporaryDirectory(prefix="bz-bench-") as base:
        bench = Bench(Path(base))
        try:
            bench.program("bz", "template", "make")()
            for part in parts or PARTS:
                PARTS[part](bench, rounds)
        finally:
            bench.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:])
