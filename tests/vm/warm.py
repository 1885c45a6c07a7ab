"""A runtime with settings and a template store of its own, so that tests may break templates."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bufferzone.guestimage import template_store
from bufferzone.model import ImageRef
from vm.private import words
from vm.verbs import PROGRAM, Result, Runtime, await_true

MAKE_S = 700.0  # a template on a busy machine: two boots, at nice 10


class Warm:
    """`settings` become rows of config.toml; `directory` holds state and store and is private to the test."""

    def __init__(self, directory: Path, image: ImageRef, **settings: object) -> None:
        directory.mkdir(exist_ok=True)
        self.rows_set = {"image": image.directory, "image_store": str(directory / "images"), **settings}
        self.path = directory / "config.toml"
        self.set()
        self.store = directory / "templates"
        self.before = words(settings=str(self.path))
        self.runtime = Runtime(directory / "root", self.before)

    def set(self, **settings: object) -> None:
        """From now on these rows too."""
        self.rows_set |= settings
        rows = (f"{key} = {json.dumps(value)}\n" for key, value in self.rows_set.items())
        self.path.write_text("".join(rows))

    def bz(self, *arguments: str) -> Result:
        """`bz ARGUMENTS`."""
        command = [*self.before, str(Path(PROGRAM).with_name("bz")), "--root", str(self.runtime.root)]
        done = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKE_S,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def make_template(self) -> None:
        """Make it in the foreground."""
        made = self.bz("template", "make")
        assert made.status == 0, made.err

    def take_template(self, made: Path) -> None:
        """Copies of the templates in the store `made`, published as a maker does: to use, or to damage."""
        for row in template_store.listing(str(made)):
            with template_store.making(str(self.store), row["key"]) as directory:
                assert directory
                for name in (template_store.MEMORY, template_store.STATE):
                    subprocess.run(
                        ["cp", "--sparse=always", str(made / row["key"] / name), directory], check=True
                    )
                facts = {key: value for key, value in row.items() if key not in ("key", "bytes", "used_ns")}
                template_store.publish(str(self.store), row["key"], directory, facts)

    def keys(self) -> list[str]:
        return [row["key"] for row in template_store.listing(str(self.store))]

    def await_template(self) -> str:
        """Wait until no maker is left; the key of the one template that is there then."""
        await_true(lambda: not makers(), "the end of the template's maker", MAKE_S)
        keys = self.keys()
        assert len(keys) == 1, (keys, (self.store / "maker.log").read_text())
        return keys[0]

    def begun(self, id: str) -> str:
        """`warm` or `cold`."""
        return str(self.runtime.state(id)["annotations"]["bufferzone.start"])

    def warnings(self, id: str) -> list[str]:
        """What the shim logged about the template."""
        lines = (self.runtime.root / id / "shim.log").read_text().splitlines()
        return [line for line in lines if "template" in line]


def makers() -> list[int]:
    """Processes of this test that make a template, or wait for the word; `leftovers` looks past them."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if _makes_template(pid) and _is_ours(pid)]


def _makes_template(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0template\0")
    except OSError:
        return False


def _is_ours(pid: int) -> bool:
    """Whether it descends from this process, a subreaper."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def open_files(pid: int) -> list[str]:
    """What the process has open, by name."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:
            continue
    return found


def for_a_module(directory: Path, image: ImageRef) -> Iterator[Warm]:
    """What a fixture yields whose tests are programs of the library's; then nothing of theirs is left."""
    warm = Warm(directory, image, templates=False)
    yield warm
    for id in os.listdir(warm.runtime.root):
        warm.bz("rm", "-f", id)
    warm.runtime.close()
