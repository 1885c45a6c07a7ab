"""The processes of the host that stand for those in the VM, where containerd asks.

Callers take the pid that a task reports for the process itself. Docker, nerdctl and `ctr --cni` put
interfaces into /proc/PID/ns/net, CRI names /proc/PID/ns/ipc to say which sandbox a container is in, hooks are
told it, and Docker 20.10 knows the end of an exec from that of its container by the pid alone. The CLI has
its waiters.

One process, forked while the shim has one thread, forks the others: an interpreter need not start for any.
A stand-in does nothing. It ends with what it stands for; killed by somebody else it takes that along.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import threading

from bufferzone import jsontext, oci
from bufferzone.errors import HostError
from bufferzone.linux import pidfd, process, title
from bufferzone.oci import host
from bufferzone.spawn import ENDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MOST = 1 << 17  # bytes of a request; a command line is shown, so it may be cut
_MOST_FDS = 1 << 20
_WORDS = 4096  # characters of a command line: more than ps has room for
_END_S = 5.0
_DEAF = b"deaf"


class StandIn:
    """One of them: `pid`, and a descriptor of it, owned until `end`."""

    def __init__(self, pid: int, descriptor: int, watched: _Watched) -> None:
        self.pid, self._pidfd, self._watched = pid, descriptor, watched

    def end(self) -> None:
        """End it, and wait for that; a second call changes nothing."""
        fd, self._pidfd = self._pidfd, -1
        if fd < 0:
            return
        self._watched.drop(fd)
        pidfd.kill(fd)
        pidfd.await_end(fd, _END_S)
        os.close(fd)


class _Watched:
    """Calls what is to be called when the process of a descriptor ends, until it is dropped. Thread-safe."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lost: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, lost: Callable[[], None]) -> None:
        self._lost[fd] = lost
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def drop(self, fd: int) -> None:
        self._lost.pop(fd, None)
        self._epoll.unregister(fd)

    def watch(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                lost = self._lost.pop(fd, None)
                if lost is not None:
                    threading.Thread(target=lost, name="stand-in lost", daemon=True).start()


class StandIns:
    """Makes them, by the process `pid`. To be made while the shim has one thread, by the thread that lives as
    long as the shim; thread-safe from `start` on.
    """

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._watched = _Watched()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _keep(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours

    def be_deaf(self) -> None:
        """In a scope of systemd's, which signals all that is in it, those made from now on heed nothing: the
        shim passes signals on. Raises OSError.
        """
        self._socket.sendall(_DEAF)

    def start(self) -> None:
        """Notice those that somebody kills, in a thread."""
        threading.Thread(target=self._watched.watch, name="stand-ins", daemon=True).start()

    def begin(self, network: str | None, words: list[str], lost: Callable[[], None]) -> StandIn:
        """A new one in a network namespace: the path of one, empty for a new one, None for the host's.

        `words` are what it shows as its command line. `lost` is called when somebody else ends it, in a
        thread of its own. Raises `HostError`.
        """
        text = jsontext.dumps({"network": network, "words": _cut(words)}).encode()
        try:
            with self._asking:
                self._socket.sendall(text)
                answer, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
        except OSError as error:
            raise HostError(f"no process stands for it: {error.strerror}", code="stand-in") from error
        if not fds:
            reason = answer.decode("utf-8", "replace") or "who makes them is gone"
            raise HostError(f"no process stands for it: {reason}", code="netns" if answer else "stand-in")
        self._watched.add(fds[0], lost)
        return StandIn(int(answer), fds[0], self._watched)

    def close(self) -> None:
        """End them all, and who makes them."""
        self._socket.close()
        os.waitpid(self.pid, 0)


def of_container(bundle: str) -> tuple[str | None, list[str]]:
    """Network namespace, as `begin` takes it, and command line of a container; raises `SpecError`."""
    spec = oci.parse_object(oci.read_bytes(os.path.join(bundle, "config.json")))
    try:
        entry = host.network_namespace(spec)
        words = [str(word) for word in spec["process"]["args"]]
    except (AttributeError, KeyError, TypeError):
        return None, []  # whoever makes it says what is wrong with it
    return None if entry is None else entry[1], words


def _cut(words: list[str]) -> list[str]:
    room, kept = _WORDS, []
    for word in words:
        if room > 0:
            kept.append(word[:room])
        room -= len(word) + 1
    return kept


def _keep(talk: socket.socket) -> None:
    """The life of who makes them: ends with the shim, and they with it."""
    process.die_with_parent()
    process.set_name("bz-stand-ins")
    os.dup2(1, 2)  # the log is the shim's: containerd reads it to the end
    os.closerange(3, talk.fileno())
    os.closerange(talk.fileno() + 1, _MOST_FDS)
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for their status
    while request := talk.recv(_MOST):
        if request == _DEAF:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            continue
        told = jsontext.loads(request.decode())
        reader, writer = os.pipe2(os.O_CLOEXEC)
        keeper, pid = os.getpid(), os.fork()
        if pid == 0:
            talk.close()
            os.close(reader)
            _stand(keeper, told["network"], told["words"], writer)
        os.close(writer)
        reason = os.read(reader, 4096)
        os.close(reader)
        _answer(talk, pid, reason)


def _answer(talk: socket.socket, pid: int, reason: bytes) -> None:
    """Tell the pid of the one that was made, or why none was."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:  # it was killed this early
        talk.sendall(reason or (error.strerror or "gone").encode())
        return
    if reason:
        pidfd.kill(fd)
        talk.sendall(reason)
    else:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        talk.sendmsg([b"%d" % pid], [rights])
    os.close(fd)


def _stand(keeper: int, network: str | None, words: list[str], tell: int) -> None:
    """The life of a stand-in; never returns."""
    try:
        process.die_with_parent()
        if os.getppid() != keeper:
            return
        os.setsid()
        _enter(network)
        title.set_command_line(words or ["bufferzone"])
        process.set_name(os.path.basename(words[0]) if words else "bufferzone")
        os.chdir("/")
        os.close(tell)
        while True:
            signal.pause()
    except OSError as error:
        os.write(tell, f"network namespace {network or ''}: {error.strerror}".encode())
    finally:
        os._exit(1)


def _enter(network: str | None) -> None:
    if network is None:
        return
    if not network:
        process.unshare(process.CLONE_NEWNET)
        return
    fd = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.setns(fd, process.CLONE_NEWNET)
    finally:
        os.close(fd)
