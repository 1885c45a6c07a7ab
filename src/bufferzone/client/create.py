"""Makes containers: the state directory, the shim with its VM, the waiter, the pid file, in that order.

What fails leaves nothing behind. Prints nothing, and knows no command line.
"""

from __future__ import annotations

import os

from bufferzone import jsontext, state
from bufferzone.client import container, detach, job, removal, start, stdio_owner, waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from bufferzone.client.connection import Client
    from bufferzone.oci import Spec


OWN_BUNDLE = "bundle"


class Order:
    """A container to be made: `id` below `root`, from a bundle that was loaded and checked.

    With `own_bundle` the spec is ours, and its config.json is written into the state directory, `OWN_BUNDLE`.
    `checkpoint` is the directory of one, to go on from there; `pid_file` gets the pid of what stands for the
    container on the host; `console_socket` the master of its terminal; `scope`: see `start_shim`; `rootfs`:
    see `job.Job`; `within` is the container whose sandbox it joins; `shim` is another program to run as the
    shim (tests); `note` is called with each step, `warn` with what is odd and no failure, once it is made.
    """

    def __init__(
        self,
        root: str,
        id: str,
        spec: Spec,
        *,
        own_bundle: bool = False,
        checkpoint: str = "",
        pid_file: str = "",
        console_socket: str = "",
        scope: bool = False,
        shim: str = "",
        rootfs: Sequence[list[Any]] = (),
        within: str = "",
        note: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.rootfs, self.within = rootfs, within
        self.root, self.id, self.spec = root, state.check_id(id), spec
        self.own_bundle = own_bundle
        self.checkpoint, self.pid_file, self.console_socket = checkpoint, pid_file, console_socket
        self.scope, self.shim, self.note, self.warn = scope, shim, note, warn

    def warn_of(self, others: int) -> None:
        """As runc does: the limits of a cgroup that others are in stay theirs."""
        if others:
            self.warn(f"container's cgroup is not empty: {others} process(es) found")


def create(order: Order, stdio: Sequence[int], *, forked: bool = False) -> int:
    """Make it, up to but not including its process; the waiter's pid.

    `stdio` are the descriptors its process gets. `forked`: see `detach.detach`. Raises what is wrong; then
    nothing is left.
    """
    directory = start.new_container(order.root, order.id, order.spec)
    try:
        return _boot(order, directory, stdio, forked=forked)
    except BaseException as error:
        removal.discard(directory, order.shim, error)
        raise


def run(order: Order, stdio: Sequence[int], *, forked: bool = False) -> int:
    """Make it and start its process; the waiter's pid. Raises what is wrong; then nothing is left."""
    directory = start.new_container(order.root, order.id, order.spec)
    try:
        pid = _boot(order, directory, stdio, forked=forked)
        order.note("start its process")
        container.start(directory)
        return pid
    except BaseException as error:
        removal.discard(directory, order.shim, error)
        raise


def run_attached(
    order: Order,
    stdio: Sequence[int],
    *,
    keep: bool = False,
    pass_signals: bool = False,
    begun: Callable[[], None] = lambda: None,
) -> int:
    """Make it, start its process and wait for its end; its exit status.

    We are what stands for it on the host. It is deleted then, unless `keep`. `pass_signals`: see
    `waiter.attach`; this process is in the container's network namespace from then on. `begun` is called once
    its process runs. Raises what is wrong; then nothing is left.
    """
    directory = start.new_container(order.root, order.id, order.spec)

    others: list[int] = []

    def begin(client: Client) -> None:
        job.write_pid_file(order.pid_file, os.getpid())
        order.note("start its process")
        container.start_through(client, order.id)
        order.warn_of(sum(others))
        begun()

    try:
        order.note("start the shim")
        found = others.append
        start.start_shim(directory, order.spec, order.shim, order.checkpoint, scope=order.scope, found=found)
        order.note("make the container")
        work = job.of_container(directory, order.spec, rootfs=order.rootfs)
        if pass_signals:  # hooks, `state` and the pid file tell our pid: interfaces are made in its namespace
            waiter.enter_network(work.network)
        status = waiter.attach(work, begin, stdio, pass_signals=pass_signals)
        order.note(f"its process ended with status {status}")
        if not keep:
            removal.remove(directory, order.id, force=True, program=order.shim)
        return status
    except BaseException as error:
        removal.discard(directory, order.shim, error)
        raise


def run_held(order: Order, stdio: Sequence[int]) -> Client:
    """Make it and start its process; the connection that it lives as long as: whatever closes it, our death
    included, has the shim end the container. Raises what is wrong; then nothing is left.
    """
    directory = start.new_container(order.root, order.id, order.spec)
    try:
        order.note("start the shim")
        if order.within:
            from bufferzone.client import join

            join.join_container(directory, order.within)
        else:
            start.start_shim(directory, order.spec, order.shim, order.checkpoint, scope=order.scope)
        order.note("make the container")
        work = job.of_container(directory, order.spec, rootfs=order.rootfs)
        client = waiter.hold(work, stdio, inside=bool(order.within))
        try:
            order.note("start its process")
            container.start_through(client, order.id)
        except BaseException:
            client.close()
            raise
        return client
    except BaseException as error:
        removal.discard(directory, order.shim, error)
        raise


def _boot(order: Order, directory: str, stdio: Sequence[int], *, forked: bool) -> int:
    if order.own_bundle:
        os.mkdir(order.spec.bundle, 0o700)
        config = os.path.join(order.spec.bundle, "config.json")
        state.replace_file(config, jsontext.dumps(order.spec.raw).encode())
    order.note("start the shim")
    others: list[int] = []
    start.start_shim(
        directory,
        order.spec,
        order.shim,
        order.checkpoint,
        waiter.get_ready,
        scope=order.scope,
        found=others.append,
    )
    order.note("make the container")
    work = job.of_container(directory, order.spec, order.console_socket, order.rootfs)
    stdio_owner.give(stdio, order.spec.process.get("user", {}), lambda: order.spec.linux)
    pid = detach.detach(work, stdio, forked=forked)
    order.note(f"the process that stands for it has pid {pid}")
    job.write_pid_file(order.pid_file, pid)
    order.warn_of(sum(others))
    return pid
