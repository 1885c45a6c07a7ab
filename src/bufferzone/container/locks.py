"""Locks of files on volumes hold against the host and every other VM: this side asks the host for them.

Left to the guest's kernel, flock(2) and fcntl(2) on a shared file would lock it for one VM alone and say
that they did. No virtiofsd helps: QEMU's waits in the only queue of the share, the Rust one has no locks. So
the processes of a container with volumes have a seccomp filter that asks us about these calls. The host is
asked for the VM's lock first (wire/locks); then the kernel sets the process's own, which sorts out who in
this VM has it. With a lock that was not the VM's before, pages and names of the file are read anew, so that
its holder sees what the one before wrote. What this kernel has locked is what /proc/locks says: when that is
less than the host holds for us, the host is told.
"""

from __future__ import annotations

import errno
import os
import time

from bufferzone.container import lockcalls, lockfiles, lockranges
from bufferzone.container.lockfiles import File
from bufferzone.container.loop import READ, report, warn
from bufferzone.linux import inotify, timer, usernotif
from bufferzone.linux.filelock import END
from bufferzone.wire.locks import EXCLUSIVE, FLOCK, NONE, RANGE, LocksResponse, LockStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.container.lockcalls import Call
    from bufferzone.container.lockfiles import Place
    from bufferzone.container.lockranges import Segment
    from bufferzone.container.loop import Loop
    from bufferzone.container.reply import Reply
    from bufferzone.wire.locks import LockResult, LocksRequest

_FIRST_S, _LONGEST_S = 0.001, 0.05  # between two tries of a lock that another has
_LOOK_S = 2.0  # a lock can go without a word: a process that ends while a child has its descriptor
_SOON_S = (0.002, 0.01, 0.05, 0.25)  # a descriptor is closed a moment before its locks go


class Broker:
    """All of a VM. `listen` for a process's calls, `serve` the host's."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.volumes = lockfiles.Volumes()
        self._names = lockfiles.Names()
        self._files: dict[str, File] = {}
        self._count = 0
        self._steps: list[tuple[LockStep, Callable[[LockResult], None] | None]] = []
        self._asked: list[tuple[LockStep, Callable[[LockResult], None] | None]] = []
        self._host: Reply | None = None
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._timer = self._inotify = -1

    # ---- the two sides

    def listen(self, listener: int) -> None:
        """Answer the calls of a process and its children from now on; owns the descriptor."""
        if self._timer < 0:
            self._timer, self._inotify = timer.make(), inotify.make()
            self._loop.watch(self._timer, READ, self._on_time)
            self._loop.watch(self._inotify, READ, self._on_close)
        self._loop.watch(listener, READ, lambda events: self._heard(listener, events))

    def serve(self, request: LocksRequest, reply: Reply) -> None:
        """The host's answers to what it was asked, and its readiness for more."""
        if request.first:
            self._begin_anew()
        asked, self._asked = self._asked, []
        for (_, then), result in zip(asked, request.results, strict=False):
            if then is not None:
                _guarded(then, result)
        self._host = reply
        self._tell_host()

    def _heard(self, listener: int, events: int) -> None:
        if not events & READ:  # everybody with the filter has ended
            self._loop.unwatch(listener)
            os.close(listener)
            return
        notification = usernotif.receive(listener)
        if notification is None:
            return
        try:
            pid, fd = lockcalls.target_of(notification)
        except OSError:
            usernotif.go_on(listener, notification)  # the kernel says it best: EBADF
            return
        call = lockcalls.Call(listener, notification, pid, fd)
        if usernotif.waits(listener, notification):
            self._answered(call, lambda: self._take(call))
        else:
            call.close()

    def _answered(self, call: Call, work: Callable[[], None]) -> None:
        """Do `work` for a call. Whatever happens, it gets an answer: nobody else would give it one."""
        try:
            work()
        except OSError as error:
            self._refuse(call, error.errno or errno.ENOLCK)
        except Exception as error:
            report(error)
            self._refuse(call, errno.ENOLCK)

    def _tell_host(self) -> None:
        if self._steps and self._host is not None and self._host.awaited and not self._asked:
            self._asked, self._steps = self._steps, []
            host, self._host = self._host, None
            host.ok(LocksResponse(steps=[step for step, _ in self._asked]))

    def _begin_anew(self) -> None:
        """A host that holds nothing: the VM was restored. It is told everything from the start."""
        waiting, self._asked, self._steps = [*self._asked, *self._steps], [], []
        for file in self._files.values():
            file.told = False
            for kind, segments in file.held.items():
                for segment in segments:
                    self._step(file, kind, segment, _complain)
        for step, then in waiting:
            if then is not None and not step.forget:
                self._steps.append((self._named(step), then))

    def _named(self, step: LockStep) -> LockStep:
        for file in self._files.values():
            if file.number == step.file:
                place = file.place
                step.volume, step.path, step.inode = place.volume, os.fsencode(place.path), place.inode
        return step

    # ---- one call

    def _take(self, call: Call) -> None:
        file = self._files.get(lockfiles.key_of(call.fd))
        place = self.volumes.find(call.fd) if file is None else file.place
        if place is None:
            self._let_go_on(call)
            return
        if not lockcalls.understand(call):
            self._let_go_on(call)
            return
        file = file or self._file_of(place, call.fd)
        if call.segment[2] == NONE and not call.test:
            self._unlock(call, file)
        elif call.test:
            self._test(call, file)
        else:
            self._lock(call, file, _FIRST_S)

    def _unlock(self, call: Call, file: File) -> None:
        lockfiles.write_back(call.fd)
        if call.of_file:
            call.lock_here()
            self._answer(call, 0)
        else:
            self._let_go_on(call)
        file.looks = 0
        self._look(file)

    def _test(self, call: Call, file: File) -> None:
        start, end, mode = call.segment
        rows = self._rows(file)
        if lockranges.in_the_way(rows, call.segment, call.pid) or self._missing(call, file) == []:
            self._let_go_on(call)  # this kernel knows it
            self._look(file)
            return
        file.asking += 1

        def found(result: LockResult) -> None:
            file.asking -= 1
            if result.error:
                self._refuse(call, result.error)
            elif not result.mode:
                self._let_go_on(call)
            elif usernotif.waits(call.listener, call.notification):
                call.answer_test(result.mode, result.start, result.end)
                self._answer(call, 0)
            else:
                call.close()
            self._look(file)

        self._step(file, RANGE, (start, end, mode), found, test=True)
        self._tell_host()

    def _lock(self, call: Call, file: File, pause_s: float) -> None:
        """Get the host's lock, then ours; again after `pause_s` if another has it and the call waits."""
        if not usernotif.waits(call.listener, call.notification):
            call.close()
            self._look(file)
            return
        rows = self._rows(file) if call.kind == RANGE and not call.of_file else []
        if lockranges.in_the_way(rows, call.segment, call.pid) and not call.waits:
            self._refuse(call, errno.EAGAIN)
            self._look(file)
            return
        missing = self._missing(call, file)
        if not missing:
            self._lock_here(call, file, pause_s)
            return
        left, failed = len(missing), 0
        file.asking += 1

        def answered(segment: Segment) -> Callable[[LockResult], None]:
            def one(result: LockResult) -> None:
                nonlocal left, failed
                left -= 1
                failed = failed or result.error
                if not result.error:
                    file.held[call.kind] = lockranges.merge([*file.held[call.kind], segment])
                if not left:
                    file.asking -= 1
                    self._answered(call, lambda: self._host_said(call, file, failed, pause_s))

            return one

        for segment in missing:
            self._step(file, call.kind, segment, answered(segment))
        self._tell_host()

    def _host_said(self, call: Call, file: File, failed: int, pause_s: float) -> None:
        if not failed:
            try:
                self._names.refresh(file.place)
                lockfiles.refresh_pages(call.fd)
            except OSError as error:
                failed = error.errno or errno.EIO
        if not failed:
            self._lock_here(call, file, pause_s)
        elif failed == errno.EAGAIN and call.waits:
            self._again(call, file, pause_s)
        else:
            self._refuse(call, failed)
            self._look(file)

    def _lock_here(self, call: Call, file: File, pause_s: float) -> None:
        """The VM has the lock: now this kernel's."""
        if not call.of_file:
            if self._let_go_on(call):
                file.flying.append(call)
        else:
            try:
                call.lock_here()
            except BlockingIOError:
                if call.waits:
                    self._again(call, file, pause_s)
                else:
                    self._refuse(call, errno.EAGAIN)
                    self._look(file)
                return
            except OSError as error:
                self._refuse(call, error.errno or errno.ENOLCK)
                self._look(file)
                return
            if not usernotif.answer(call.listener, call.notification):  # a signal came: it has no lock
                call.segment = (call.segment[0], call.segment[1], NONE)
                call.lock_here()
            call.close()
        file.looks = 0
        self._look(file)

    def _again(self, call: Call, file: File, pause_s: float) -> None:
        def again() -> None:
            file.waiting -= 1
            self._answered(call, lambda: self._lock(call, file, min(2 * pause_s, _LONGEST_S)))

        file.waiting += 1
        self._look(file)
        self._after(pause_s, again)

    def _missing(self, call: Call, file: File) -> list[Segment]:
        """What the host has to be asked for. A file that is mapped is one kernel's alone."""
        wanted = [(0, END, EXCLUSIVE)] if file.place.mapped and call.kind == RANGE else [call.segment]
        return lockranges.above(wanted, file.held[call.kind])

    def _let_go_on(self, call: Call) -> bool:
        call.close()
        return usernotif.go_on(call.listener, call.notification)

    def _answer(self, call: Call, number: int) -> None:
        call.close()
        usernotif.answer(call.listener, call.notification, number)

    def _refuse(self, call: Call, number: int) -> None:
        self._answer(call, number)

    # ---- what the kernel has, and what the host holds

    def _file_of(self, place: Place, fd: int) -> File:
        file = self._files.get(place.key)
        if file is None:
            self._count += 1
            path_fd = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            file = self._files[place.key] = File(self._count, place, path_fd)
            file.watch = inotify.add_closing(self._inotify, f"/proc/self/fd/{path_fd}")
        return file

    def _rows(self, file: File) -> list[lockranges.Row]:
        with open("/proc/locks", "rb", buffering=0) as table:
            return lockranges.rows_of((table.readall() or b"").decode(), file.place.key)

    def _look(self, file: File) -> None:
        """Give the host back what nobody here has any more, and look again later."""
        self._due = [row for row in self._due if row[1] != file.next_look]
        if file.asking or self._files.get(file.place.key) is not file:
            return
        number = usernotif.CALLS[usernotif.X86_64][1][0]
        inside = [call for call in file.flying if lockcalls.may_be_inside(call.notification.thread, number)]
        rows = self._rows(file)
        file.flying = [call for call in inside if not lockranges.is_seen(rows, call.pid, call.segment)]
        lost = False
        for kind in (FLOCK, RANGE):
            target = [row.segment for row in rows if row.kind == kind]
            target += [call.segment for call in file.flying if call.kind == kind]
            if target and file.place.mapped and kind == RANGE:
                target = [(0, END, EXCLUSIVE)]
            lost |= self._lower(file, kind, lockranges.merge(target))
        if any(file.held.values()) or file.flying:
            pause_s = _LOOK_S if file.looks >= len(_SOON_S) else _SOON_S[file.looks]
            file.looks = 0 if lost else file.looks + 1
            file.next_look = self._after(pause_s, lambda: self._look(file))
        elif not file.waiting:
            self._forget(file)
        self._tell_host()

    def _lower(self, file: File, kind: int, target: list[Segment]) -> bool:
        held = file.held[kind]
        given_back = lockranges.below(target, held)
        for segment in given_back:
            self._step(file, kind, segment, None)
        file.held[kind] = lockranges.least(target, held)
        return bool(given_back)

    def _forget(self, file: File) -> None:
        del self._files[file.place.key]
        inotify.remove(self._inotify, file.watch)
        os.close(file.path_fd)
        if file.told:
            self._steps.append((LockStep(file=file.number, forget=True), None))

    def _step(
        self,
        file: File,
        kind: int,
        segment: Segment,
        on_result: Callable[[LockResult], None] | None,
        *,
        test: bool = False,
    ) -> None:
        start, end, mode = segment
        step = LockStep(file=file.number, kind=kind, mode=mode, start=start, end=end, test=test)
        if not file.told:
            file.told = True
            step = self._named(step)
        self._steps.append((step, on_result))

    # ---- time

    def _after(self, seconds: float, action: Callable[[], None]) -> int:
        self._count += 1
        self._due.append((time.monotonic() + seconds, self._count, action))
        self._due.sort()
        timer.set_in(self._timer, self._due[0][0] - time.monotonic())
        return self._count

    def _on_time(self, events: int) -> None:
        timer.drain(self._timer)
        now = time.monotonic()
        ready = [then for at, _, then in self._due if at <= now]
        self._due = [row for row in self._due if row[0] > now]
        for then in ready:
            _guarded(then)
        if self._due:
            timer.set_in(self._timer, self._due[0][0] - time.monotonic())

    def _on_close(self, events: int) -> None:
        closed = inotify.watches_of(self._inotify)
        for file in [file for file in self._files.values() if file.watch in closed]:
            file.looks = 0
            self._look(file)


def _guarded(work: Callable[..., None], *given: LockResult) -> None:
    """A failure is one file's, and the rest goes on."""
    try:
        work(*given)
    except Exception as error:
        report(error)


def _complain(result: LockResult) -> None:
    if result.error:
        warn(f"a lock was lost while the VM was away: {os.strerror(result.error)}")
