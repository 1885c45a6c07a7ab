"""Landlock: what is asked of each version of the kernel's interface, and what then holds where there is one.

The second half is skipped where the kernel has none; `tests/host/test_landlock.py` runs it where it has.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from bufferzone.linux import landlock, process
from bufferzone.linux.landlock import Rules

FILES = {1: 0x1FF2, 2: 0x3FF2, 3: 0x7FF2, 4: 0x7FF2, 5: 0x7FF2, 6: 0x7FF2}
BIND, CONNECT = 1, 2


@pytest.mark.parametrize("version", FILES)
def test_a_version_is_asked_for_what_it_knows(version: int) -> None:
    net, scopes = 3 if version >= 4 else 0, 3 if version >= 6 else 0
    assert landlock.handled(Rules(), version) == (FILES[version], net, scopes)


def test_no_kernel_is_asked_for_what_it_does_not_have() -> None:
    assert landlock.handled(Rules(), 0) == (0, 0, 0)
    assert landlock.handled(Rules(writable=None, ports=(80,)), 3) == (0, 0, 0)
    assert landlock.handled(Rules(writable=None, ports=(80,)), 4) == (0, BIND, 0)


def test_a_tree_is_left_alone_by_the_version_that_forbids_every_rename_between_directories() -> None:
    assert landlock.handled(Rules(trees=("/tree",)), 1)[0] == 0
    assert landlock.handled(Rules(trees=("/tree",)), 2)[0] == FILES[2]


class Kernel:
    """Takes down what is asked, as a kernel of this version."""

    def __init__(self, version: int) -> None:
        self._version = version
        self.asked: list[tuple[int, ...]] = []
        self.restricted = False

    def call(self, number: int, what: str, *arguments: object, path: str | None = None) -> int:
        if what == "landlock_restrict_self":
            self.restricted = True
            return 0
        first, second = arguments[:2]
        if what == "landlock_create_ruleset":
            if first is None:
                return self._version
            assert isinstance(first, bytes)
            assert second == len(first)
            self.asked.append(struct.unpack(f"={len(first) // 8}Q", first))
            return os.open("/dev/null", os.O_RDONLY)
        assert what == "landlock_add_rule"
        rule = arguments[2]
        assert isinstance(rule, bytes)
        self.asked.append(
            (int(str(second)), *struct.unpack("=QQ" if second == 2 else "=Qi", rule)[: 1 + (second == 2)])
        )
        return 0


def ask(monkeypatch: pytest.MonkeyPatch, version: int, rules: Rules) -> Kernel:
    kernel = Kernel(version)
    monkeypatch.setattr(landlock, "syscall", kernel.call)
    assert landlock.restrict(rules) == version
    return kernel


def test_below_a_tree_everything_is_allowed_and_ports_are_named(monkeypatch, tmp_path: Path) -> None:
    rules = Rules(writable=("/dev/null",), trees=(str(tmp_path),), ports=(80, 443))
    kernel = ask(monkeypatch, 6, rules)
    assert kernel.asked == [(0x7FF2, BIND, 3), (1, 0x4002), (1, 0x7FF2), (2, BIND, 80), (2, BIND, 443)]
    assert kernel.restricted
    older = ask(monkeypatch, 2, rules)
    assert older.asked == [(0x3FF2,), (1, 2), (1, 0x3FF2)]


def test_where_nothing_can_be_asked_nothing_is(monkeypatch) -> None:
    kernel = ask(monkeypatch, 3, Rules(writable=None, ports=()))
    assert (kernel.asked, kernel.restricted) == ([], False)


def needs(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        landlock.version() < version, reason=f"the kernel's Landlock is not of version {version}"
    )


def refused(rules: Rules, *attempts: Callable[[], object]) -> list[bool]:
    """Which of these a process is refused that is restricted so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        process.set_no_new_privileges()
        landlock.restrict(rules)
        for attempt in attempts:
            try:
                attempt()
                os.write(writer, b"n")
            except PermissionError:
                os.write(writer, b"y")
            except OSError:
                os.write(writer, b"n")  # it was let through, and failed for another reason
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        found = [letter == "y" for letter in file.read()]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return found


@needs(2)
def test_who_has_a_tree_does_everything_below_it_and_changes_nothing_beside_it(tmp_path: Path) -> None:
    tree, other = tmp_path / "tree", tmp_path / "other"
    for place in (tree / "a", tree / "b", other):
        place.mkdir(parents=True)
        (place / "file").write_text("x")
    allowed = refused(
        Rules(trees=(str(tree),)),
        lambda: (tree / "a" / "file").write_text("y"),
        lambda: os.rename(tree / "a" / "file", tree / "b" / "moved"),
        lambda: os.link(tree / "b" / "moved", tree / "a" / "linked"),
        lambda: os.symlink("/anywhere", tree / "link"),
        lambda: os.mkfifo(tree / "fifo"),
        lambda: os.mknod(tree / "whiteout", 0o20000, 0),
        lambda: os.truncate(tree / "b" / "file", 0),
        lambda: os.unlink(tree / "b" / "file"),
        lambda: os.rmdir(tree / "a" / "nothing"),
        lambda: (other / "file").read_text(),
    )
    assert allowed == [False] * 10
    assert (tree / "a" / "linked").read_text() == "y"
    denied = refused(
        Rules(trees=(str(tree),)),
        lambda: (other / "file").write_text("y"),
        lambda: (other / "new").write_text("y"),
        lambda: os.unlink(other / "file"),
        lambda: os.mkdir(other / "directory"),
        lambda: os.mknod(other / "node", 0o20000, 0),
    )
    assert denied == [True] * 5
    assert [path.name for path in other.iterdir()] == ["file"]


@needs(4)
def test_who_was_given_ports_takes_no_other_and_reaches_all() -> None:
    with socket.socket() as found, socket.socket() as listener:
        found.bind(("127.0.0.1", 0))
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (own,), (reached,) = ([each.getsockname()[1]] for each in (found, listener))
        found.close()
        assert refused(
            Rules(writable=None, ports=(own,)),
            lambda: socket.socket().bind(("127.0.0.1", own)),
            lambda: socket.socket().connect(("127.0.0.1", reached)),
            lambda: socket.socket().bind(("127.0.0.1", own ^ 1)),
            lambda: socket.socket().bind(("127.0.0.1", 0)),
        ) == [False, False, True, True]


@needs(6)
def test_who_is_restricted_reaches_no_port_no_abstract_socket_and_no_process_outside() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0bufferzone-test-{os.getpid()}")
        listener.listen()
        pid, name = os.getpid(), listener.getsockname()
        assert (
            refused(
                Rules(),
                lambda: os.kill(pid, 0),
                lambda: socket.socket(socket.AF_UNIX).connect(name),
                lambda: socket.socket().bind(("127.0.0.1", 0)),
                lambda: socket.socket().connect(("127.0.0.1", 9)),
            )
            == [True] * 4
        )
