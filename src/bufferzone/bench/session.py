"""One run of the benchmark: a place of its own, the runtimes in turn, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial

from bufferzone import config
from bufferzone.bench import bundles, guests, machine, measure, programs, report, runtimes, touched, turns
from bufferzone.bench.floor import Floor
from bufferzone.bench.measure import Column
from bufferzone.bench.places import own_place
from bufferzone.bench.pool import PoolRuntime
from bufferzone.bench.turns import Settings, TurnRuntime
from bufferzone.errors import BufferzoneError
from bufferzone.guestimage.current import current_image
from bufferzone.log import passing_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from bufferzone.bench.runtimes import Runtime

    Action = Callable[[Runtime, Column], None]

_QEMU_VERSION = "QEMU emulator version "
_LEAN, _STOCK = 'guest = "lean"\n', 'guest = "stock"\n'


class Order:
    """What was asked for: `runs` rounds, the runtimes `only` (empty: all), `sandboxes` to grow to,
    `parallel` counts, and `minutes` after which no new measurement begins.
    """

    def __init__(
        self, *, runs: int, only: Sequence[str], sandboxes: int, parallel: Sequence[int], minutes: int
    ) -> None:
        self.runs, self.only, self.sandboxes = runs, list(only), sandboxes
        self.parallel, self.minutes = list(parallel), minutes

    def options(self) -> dict[str, Any]:
        """For the report."""
        return dict(self.__dict__)


class Session:
    """Measures; `progress` gets a line for each step."""

    def __init__(self, order: Order, directory: str, progress: Callable[[str], None]) -> None:
        self._order, self._directory, self._progress = order, directory, progress
        self._end = time.monotonic() + order.minutes * 60
        self._floors: dict[str, Floor] = {}
        self.columns: dict[str, Column] = {}
        self.versions: dict[str, str] = {}
        self._runtimes: list[Runtime] = []
        self._prepared: list[Runtime] = []  # those that failed too

    def measure(self) -> dict[str, Any]:
        """All of it; returns the report. Raises `BufferzoneError` when nothing can be measured."""
        facts = machine.facts(self._directory)
        self._prepare()
        facts["qemu_version"] = self._qemu_version(str(facts.get("qemu", "")))
        self._rounds()
        for count in self._order.parallel:
            self._each(f"{count} at once", partial(measure.side_by_side, count=count), count)
        if self._order.sandboxes > 1:
            most = self._order.sandboxes
            self._each(f"1 to {most}", partial(measure.grow, count=most, deadline=self._end))
            grow = partial(touched.grow, count=most, deadline=self._end)
            self._each(f"1 to {most}, memory touched before", grow, only=runtimes.WARM)
        for floor in self._floors.values():
            floor.close()
        return report.build(facts, self._order.options(), self.versions, self.columns)

    def _prepare(self) -> None:
        rootfs = os.path.join(self._directory, "rootfs")
        bundles.make_rootfs(rootfs)
        own = runtimes.write_program(os.path.join(self._directory, "bufferzone"), "bufferzone.cli.main")
        turns.own_settings(self._directory)
        no_lean = _lean_reason()
        bz = runtimes.write_program(os.path.join(self._directory, "bz"), "bufferzone.cli.bz.main")
        for name in self._order.only or runtimes.NAMES:
            self.columns[name] = Column(name)
            self.columns[name].reason = no_lean if name in runtimes.LEAN_NAMES else ""
            if name in runtimes.FLOORS or self.columns[name].reason:
                continue
            runtime = runtimes.find(name, own)
            if runtime.is_ours and not runtime.reason:
                runtime = _of_ours(name, runtime.prefix, bz)
            self.columns[name].reason = runtime.reason
            if not runtime.reason:
                self._prepared.append(runtime)
                runtime.prepare(os.path.join(self._directory, name), rootfs)
                self.versions[name] = runtimes.read_version(runtime)
                self._runtimes.append(runtime)
        self._warm_up(bz)

    def _warm_up(self, bz: str) -> None:
        """The template, and one round of each that does not count: files are cached then."""
        for rows in (rows for rows in (_STOCK, _LEAN) if self._wants_template(rows)):
            self._progress("a template")
            with Settings(rows):
                programs.run(
                    [bz, "template", "make"], os.path.join(self._directory, "bz.err"), runtimes.VERB_S
                )
        for runtime in list(self._runtimes):
            self._try(runtime, Column(""), "warm-up", partial(measure.one_round, id="warm-up"))
        for name in self.columns:
            if not self.columns[name].reason:
                self._look_at(name)

    def _wants_template(self, rows: str) -> bool:
        return any(
            _rows(name) == rows and not column.reason
            for name, column in self.columns.items()
            if name.partition("-")[2] in ("warm", "pool", "floor") or name == runtimes.FLOOR
        )

    def _look_at(self, name: str) -> None:
        """The guest of a cold start, once; the floor's first start, which does not count."""
        directory = os.path.join(self._directory, f"look-{name}")
        try:
            with Settings(_rows(name)):
                if name in runtimes.COLD_NAMES:
                    self._progress(f"the guest: {name}")
                    self.columns[name].guest = guests.measure(directory)
                elif name in runtimes.FLOORS:
                    self._floors[name] = floor = Floor(directory)
                    floor.start()
                    self.columns[name].guest = {"blocks": floor.blocks}
        except BufferzoneError as error:
            self.columns[name].reason = error.line()
            self._floors.pop(name, None)

    def _rounds(self) -> None:
        """In turn, so that whatever else the machine does meets all alike."""
        for number in range(self._order.runs):
            step = f"round {number + 1} of {self._order.runs}"
            self._each(step, partial(measure.one_round, id=f"r{number}"))
            for name, floor in self._floors.items():
                if time.monotonic() < self._end:
                    took_ms, timeline = floor.start()
                    self.columns[name].add("start", took_ms)
                    self.columns[name].timelines.append(timeline)

    def _each(self, step: str, action: Action, size: int = 1, only: str = "") -> None:
        for runtime in list(self._runtimes):
            column = self.columns[runtime.name]
            if only not in ("", runtime.name):
                continue
            if time.monotonic() > self._end:
                column.reason = column.reason or f"{step}: the {self._order.minutes} minutes were over"
                continue
            self._progress(f"{step}: {runtime.name}")
            self._try(runtime, column, step, action, size)

    def _try(self, runtime: Runtime, column: Column, step: str, action: Action, size: int = 1) -> None:
        """A runtime that fails is measured no further; the others are."""
        try:
            try:
                runtime.enter(size)
                action(runtime, column)
            finally:
                runtime.leave()
        except BufferzoneError as error:
            self.columns[runtime.name].reason = f"{step}: {error.line()}"
            self._runtimes.remove(runtime)

    def _qemu_version(self, program: str) -> str:
        if not program:
            return ""
        try:
            done = programs.run([program, "--version"], os.path.join(self._directory, "qemu.err"), 20.0)
        except BufferzoneError:
            return ""
        return done.output.decode("utf-8", "replace").partition("\n")[0].removeprefix(_QEMU_VERSION)

    def clean_up(self) -> None:
        """Delete what every runtime has, as its callers would."""
        for runtime in self._prepared:
            with passing_over(f"end what {runtime.name} runs", BufferzoneError):
                runtime.leave()
            names = os.listdir(runtime.root) if os.path.isdir(runtime.root) else []
            runtime.remove([name for name in names if os.path.isdir(os.path.join(runtime.root, name))])


def _rows(name: str) -> str:
    """The settings that a column has beside the machine's."""
    return _LEAN if name in runtimes.LEAN_NAMES else _STOCK


def _of_ours(name: str, prefix: Sequence[str], bz: str) -> TurnRuntime:
    if name in runtimes.POOLS:
        pool = PoolRuntime(name, prefix)
        pool.bz, pool.rows = bz, _rows(name)
        return pool
    runtime = TurnRuntime(name, prefix)
    runtime.rows = _rows(name)
    return runtime


def _lean_reason() -> str:
    """Why there is nothing lean to be measured; empty when there is."""
    try:
        current_image(config.load().image_store, lambda line: None, "lean")
    except BufferzoneError as error:
        return error.line()
    return ""


@contextlib.contextmanager
def place() -> Iterator[str]:
    """A directory in memory; gone afterwards, and with it every process."""
    with own_place("bufferzone-bench-") as directory:
        try:
            yield directory
        finally:
            programs.end_all()


def run(order: Order, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure and return the report. SIGINT and SIGTERM raise KeyboardInterrupt, after everything is gone."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    machine.step_aside()
    programs.watch_children()
    with place() as directory:
        session = Session(order, directory, progress)
        try:
            return session.measure()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # what follows takes seconds and is not to be torn
            session.clean_up()
