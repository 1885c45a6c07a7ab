"""The keeper of waiting VMs: who waits, who is handed over, who is started next.

It owns a few processes of `pool.worker` per stock, hands one over per claim and starts the next in the
background, one at a time. It knows nothing of VMs. Requests are one JSON object per connection on
ROOT/@pool/keeper.sock: `claim`, `list`, `stop`. A caller that gets no answer starts without a pool.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time

from bufferzone import config, programs, state
from bufferzone.errors import BufferzoneError, HostError
from bufferzone.linux import identity, namespaces, pidfd
from bufferzone.pool.listener import MOST_REQUEST, Listener, receive
from bufferzone.pool.waiting_vm import sized

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from bufferzone.config import Settings

#: stocks that VMs wait for; the one not requested for longest gives way
_MOST_SHAPES = 4
#: a container that has just got its VM is left alone for so long before the next VM is made
QUIET_S = 0.5
#: after a VM that could not be made: no template yet, no memory
_RETRY_S, _MOST_RETRY_S = 5.0, 320.0
_END_S = 10.0
#: the longest time without a look at whether callers still find us, where no event tells
_LOOK_S = 60.0
#: what of a claim its worker gets; the rest has been checked here
_PASSED_ON = ("id", "bundle", "oom_score_adj", "nice", "containerd")


class Worker:
    """A process of `pool.worker`: `state` is filling, waiting, taken or dismissed. Owns `pidfd` and
    `control`. `directory` is gone already when it was taken.
    """

    def __init__(self, pid: int, control: socket.socket, directory: str) -> None:
        self.pid, self.control, self.directory = pid, control, directory
        self.pidfd = os.pidfd_open(pid)
        self.state = "filling"
        self.since = time.monotonic()

    def dismiss(self) -> None:
        """Let it end: one that waits by itself, one that is still at work by a signal."""
        if self.state == "filling":
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        self.state = "dismissed"
        self.control.close()

    def let_go(self) -> None:
        """It goes on without us."""
        os.close(self.pidfd)
        self.control.close()

    def reap(self) -> None:
        """It has ended."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.let_go()


class Stock:
    """The workers for one set of settings that nobody took, and when the next may be made."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers: list[Worker] = []
        self.not_before = 0.0
        self.retry_s = _RETRY_S
        self.note = ""  # why there are none, as the last one said that tried

    def was_requested(self) -> None:
        """What kept us from making one may be over soon: a start makes a template."""
        self.retry_s = _RETRY_S
        self.not_before = min(self.not_before, time.monotonic() + self.retry_s)


class Keeper:
    """The pool below `directory`. `load` reads the settings, `spawn(settings, directory)` starts a worker and
    returns its pid and our end of the socket to it.
    """

    def __init__(
        self,
        directory: str,
        load: Callable[[], Settings],
        spawn: Callable[[Settings, str], tuple[int, socket.socket]],
        log: Callable[[str], None],
    ) -> None:
        self._directory, self._load, self._spawn, self._log = directory, load, spawn, log
        self._stocks: dict[str, Stock] = {}  # the one requested last is last
        self._leaving: list[Worker] = []  # taken or dismissed: to be reaped
        self._serial = 0
        self._used = time.monotonic()
        self._ending = False
        self._stop_connections: list[socket.socket] = []
        self._namespaces = namespaces.shared()
        self._listener = Listener(directory)

    def add_stock(self, settings: dict[str, Any], spec: dict[str, Any]) -> Stock:
        """Fill up from now on with VMs of the size that `spec`, what decides it of a config.json, needs."""
        wanted = sized(config.Settings(**settings), spec, spec.get("annotations") or {})
        key = json.dumps(config.shape_of(wanted), sort_keys=True)
        stock = self._stocks.pop(key, None) or Stock(wanted)
        self._stocks[key] = stock
        return stock

    def run(self) -> None:
        """Until the pool is disabled, nobody used it for `pool.idle_s`, `stop`, or nobody finds us."""
        while not self._ending:
            if not self._listener.is_there():
                self._log("the socket was removed or moved: the pool ends")
                break
            settings = self._load()
            if settings.pool_size == 0 or time.monotonic() > self._used + settings.pool_idle_s:
                break
            self._shrink(settings.pool_size)
            wake = self._fill(settings.pool_size)
            self._await_events(min(wake, self._used + settings.pool_idle_s) - time.monotonic())

    def close(self) -> None:
        """End those that wait, and those only. Who asked for the stop learns that it is done."""
        self._listener.shut()
        for stock in self._stocks.values():
            self._dismiss(stock, stock.workers)
        end = time.monotonic() + _END_S
        for worker in self._leaving:
            if worker.state == "dismissed":
                _await_end(worker, end)
                self._reap(worker)
            else:
                worker.let_go()
        for connection in self._stop_connections:
            connection.close()
        self._listener.close()

    # ---- filling up

    def _shrink(self, size: int) -> None:
        """Let go of stocks and VMs beyond what is wanted."""
        while len(self._stocks) > _MOST_SHAPES:
            oldest = self._stocks.pop(next(iter(self._stocks)))
            self._dismiss(oldest, oldest.workers)
        for stock in self._stocks.values():
            self._dismiss(stock, stock.workers[size:])

    def _dismiss(self, stock: Stock, workers: list[Worker]) -> None:
        for worker in list(workers):
            stock.workers.remove(worker)
            worker.dismiss()
            self._leaving.append(worker)

    def _fill(self, size: int) -> float:
        """Start the next worker if one is missing and none is on its way; when to look again."""
        wake = float("inf")
        if any(w.state == "filling" for stock in self._stocks.values() for w in stock.workers):
            return wake
        for stock in reversed(self._stocks.values()):
            if len(stock.workers) >= size:
                continue
            if stock.not_before > time.monotonic():
                wake = min(wake, stock.not_before)
                continue
            self._start(stock)
            return float("inf")
        return wake

    def _start(self, stock: Stock) -> None:
        self._serial += 1
        name = str(self._serial)
        directory = os.path.join(self._listener.place, name)
        try:
            os.mkdir(directory, 0o711)
            pid, control = self._spawn(stock.settings, os.path.join(self._directory, name))
        except OSError as error:
            self._log(f"cannot start a waiting shim: {error.strerror}: {error.filename or name}")
            self._remove(directory, error)
            self._later(stock)
        else:
            stock.workers.append(Worker(pid, control, directory))

    def _remove(self, directory: str, reason: OSError | None = None) -> None:
        """What is in the way of nobody may stay: it is said, and the next keeper tries again."""
        if isinstance(reason, FileExistsError):
            return  # somebody else's
        try:
            state.remove(directory)
        except HostError as error:
            self._log(error.line())

    def _reap(self, worker: Worker) -> None:
        worker.reap()
        self._remove(worker.directory)

    def _later(self, stock: Stock) -> None:
        stock.not_before = time.monotonic() + stock.retry_s
        stock.retry_s = min(2 * stock.retry_s, _MOST_RETRY_S)

    # ---- listening

    def _await_events(self, timeout_s: float) -> None:
        poll = select.poll()
        poll.register(self._listener.listener, select.POLLIN)
        if self._listener.watch >= 0:
            poll.register(self._listener.watch, select.POLLIN)
        workers = [(stock, worker) for stock in self._stocks.values() for worker in stock.workers]
        every = [*workers, *((None, worker) for worker in self._leaving)]
        for _, worker in every:
            poll.register(worker.pidfd, select.POLLIN)
            if worker.control.fileno() >= 0:
                poll.register(worker.control, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(min(max(0.0, timeout_s), _LOOK_S) * 1000 + 1)}
        for stock, worker in every:
            if worker.control.fileno() in ready:
                self._heard(stock, worker)
            if worker.pidfd in ready:
                self._ended(stock, worker)
        if self._listener.listener.fileno() in ready:
            self._accept()

    def _heard(self, stock: Stock | None, worker: Worker) -> None:
        """A worker said that it waits, or why it cannot; or closed the socket: it ends, or is a shim now."""
        try:
            word = worker.control.recv(MOST_REQUEST)
        except OSError:
            word = b""
        if stock is not None and word == b"waiting":
            worker.state = "waiting"
            stock.retry_s, stock.note = _RETRY_S, ""
        elif word:
            text = word.decode("utf-8", "replace")
            self._log(f"worker {worker.pid}: {text}")
            if stock is not None:
                stock.note = text
        else:
            worker.control.close()

    def _ended(self, stock: Stock | None, worker: Worker) -> None:
        if stock is None:
            self._leaving.remove(worker)
        else:
            stock.workers.remove(worker)
            if worker.state == "filling":
                self._later(stock)
        self._reap(worker)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.listener.accept()
        except OSError as error:
            self._log(f"cannot accept a connection: {error.strerror}")
            return
        fds: list[int] = []
        kept = False
        try:
            kept = self._answer(receive(connection, fds), connection, fds)
        except (OSError, ValueError, KeyError, TypeError, BufferzoneError) as error:
            self._log(f"invalid request: {error}")
        finally:
            for fd in fds:
                os.close(fd)
            if not kept:
                connection.close()

    def _answer(self, request: dict[str, Any], connection: socket.socket, fds: list[int]) -> bool:
        """Do what is asked; True when the connection is kept."""
        if request["do"] == "stop":
            self._ending = True
            self._stop_connections.append(connection)
            return True
        if request["do"] == "list":
            connection.sendall(json.dumps(self.listing()).encode() + b"\n")
            return False
        if request["namespaces"] != self._namespaces:
            self._refuse_other_namespaces(request["namespaces"])
        if request.get("code") != programs.PLACE:
            self._ending = True  # an upgrade: VMs that wait are the older version's
            raise HostError("a caller of another version: the pool ends")
        self._used = time.monotonic()
        stock = self.add_stock(request["settings"], request["spec"])
        self._hand_over(stock, request, connection, fds)
        stock.was_requested()
        stock.not_before = max(stock.not_before, time.monotonic() + QUIET_S)
        return False

    def _refuse_other_namespaces(self, theirs: str) -> None:
        """Raise; and give way where an ordinary user's containers have moved to another user namespace."""
        mine, others = (
            {kind for kind in text.split() if "user:" in kind} for text in (self._namespaces, theirs)
        )
        if mine != others and not identity.is_real_root():
            self._ending = True
            raise HostError("a caller in another user namespace: the pool ends")
        raise HostError("a caller in other namespaces")

    def _hand_over(
        self, stock: Stock, request: dict[str, Any], connection: socket.socket, fds: list[int]
    ) -> None:
        """Give the claim to the first that waits; with none the caller hears the connection end."""
        if len(fds) != (2 if request.get("containerd") else 1):
            raise ValueError("a claim must come with a mount namespace, and containerd's with a listener")
        message = json.dumps({key: request[key] for key in _PASSED_ON if key in request}).encode()
        for worker in [worker for worker in stock.workers if worker.state == "waiting"]:
            try:
                socket.send_fds(worker.control, [message], [connection.fileno(), *fds])
            except OSError:
                continue  # it has just ended
            worker.state = "taken"
            stock.workers.remove(worker)
            self._leaving.append(worker)
            return

    def listing(self) -> dict[str, Any]:
        """Everything, for people."""
        now = time.monotonic()
        rows = [
            {
                "pid": worker.pid,
                "state": worker.state,
                "vcpus": stock.settings.vcpus,
                "memory_mib": stock.settings.memory_mib,
                "age_s": round(now - worker.since, 1),
            }
            for stock in self._stocks.values()
            for worker in stock.workers
        ]
        notes = [f"no VM waits: {stock.note}" for stock in self._stocks.values() if stock.note]
        return {"pid": os.getpid(), "size": self._load().pool_size, "vms": rows, "notes": notes}


def _await_end(worker: Worker, end: float) -> None:
    """Wait for it; one that takes too long is killed."""
    pidfd.end(worker.pidfd, end - time.monotonic())
