"""Writes the records: appends a line, turns files over. A line is whole or is not there."""

from __future__ import annotations

import fcntl
import json
import os
import time

from bufferzone import log
from bufferzone.digest import sha256
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NEWEST, HEAD, LOCK = "records.jsonl", "head.json", "lock"
#: bytes of one file, files kept beside the newest
MOST_BYTES, KEEP = 4 << 20, 7
#: what one line may have: characters of a text, elements of a list, bytes in all
_MOST_TEXT, _MOST_LIST, _MOST_LINE = 1024, 64, 16 << 10
NOTHING = "0" * 64
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class Head(Record):
    """Where the chain ends: `seq` and `hash` of the last line; `first`: the number of the oldest one."""

    seq: int
    hash: str
    first: int


class Journal:
    """The recorder of the sandbox `sandbox_id`. Thread-safe, and safe beside other processes."""

    on = True

    def __init__(self, directory: str, sandbox_id: str) -> None:
        self._directory, self._id = directory, sandbox_id

    def note(self, event: str, id: str = "", **facts: object) -> None:
        """Append one line; `id` empty: the sandbox's. Never raises: what cannot be written is logged."""
        try:
            self._append(event, id or self._id, facts)
        except (OSError, ValueError) as error:
            log.say(f"the flight recorder did not write {event}: {error}")

    def _append(self, event: str, id: str, facts: dict[str, object]) -> None:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        fd = os.open(os.path.join(self._directory, LOCK), os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            path = os.path.join(self._directory, NEWEST)
            head = self._turn_over(path, _caught_up(path, read_head(self._directory)))
            line, following = _line(head, event, id, facts)
            _write_whole(path, line)
            self._write_head(following)
        finally:
            os.close(fd)

    def _turn_over(self, path: str, head: Head) -> Head:
        """Begin a new file where the newest is full, and let the oldest go."""
        try:
            if os.stat(path).st_size < MOST_BYTES:
                return head
        except FileNotFoundError:
            return head
        with open(path, "rb") as file:
            begins = int(json.loads(file.readline())["seq"])
        os.rename(path, os.path.join(self._directory, f"records-{begins}.jsonl"))
        numbers = older(self._directory)
        following = Head(seq=head.seq, hash=head.hash, first=numbers[-KEEP:][0])
        if numbers[:-KEEP]:
            self._write_head(following)  # before: a file below `first` is one that was to go, see `chain`
        for number in numbers[:-KEEP]:
            os.unlink(os.path.join(self._directory, f"records-{number}.jsonl"))
        return following

    def _write_head(self, head: Head) -> None:
        path = os.path.join(self._directory, HEAD)
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps({"seq": head.seq, "hash": head.hash, "first": head.first}).encode())
        os.rename(f"{path}.new", path)


def read_head(directory: str) -> Head:
    """The end of the chain; of none where nothing was recorded. Raises OSError, ValueError."""
    try:
        with open(os.path.join(directory, HEAD), "rb") as file:
            value = json.loads(file.read(4096))
    except FileNotFoundError:
        return Head(seq=0, hash=NOTHING, first=1)
    try:
        return Head(seq=int(value["seq"]), hash=str(value["hash"]), first=int(value["first"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{HEAD} is none") from error


def older(directory: str) -> list[int]:
    """The numbers with which the older files begin, in order."""
    names = (name.removeprefix("records-").removesuffix(".jsonl") for name in os.listdir(directory))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _line(head: Head, event: str, id: str, facts: dict[str, object]) -> tuple[bytes, Head]:
    """The next line and the head after it."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    value = {"seq": head.seq + 1, "time": stamp, "id": id[:_MOST_TEXT], "event": event}
    text = json.dumps({**value, **_bounded(facts), "prev": head.hash})
    if len(text) > _MOST_LINE:
        text = json.dumps({**value, "left_out": len(text), "prev": head.hash})
    digest = sha256(text.encode()).hexdigest()
    line = f'{text[:-1]}, "hash": "{digest}"}}\n'.encode()
    return line, Head(seq=head.seq + 1, hash=digest, first=head.first)


def _caught_up(path: str, head: Head) -> Head:
    """The head after the last line. A writer that was killed in the middle left half a line, which goes, or a
    whole one that the head does not know of.
    """
    try:
        fd = os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        return head
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, 2 * _MOST_LINE, max(0, size - 2 * _MOST_LINE))
        whole, _, half = tail.rpartition(b"\n")
        if half:
            os.ftruncate(fd, size - len(half))
        last = json.loads(whole.rpartition(b"\n")[2] or b"{}")
    finally:
        os.close(fd)
    if (last.get("seq"), last.get("prev")) != (head.seq + 1, head.hash):
        return head
    return Head(seq=head.seq + 1, hash=str(last["hash"]), first=head.first)


def _bounded(value: Any) -> Any:
    """No text or list without end, whoever said it."""
    if isinstance(value, dict):
        return {str(key)[:_MOST_TEXT]: _bounded(each) for key, each in list(value.items())[:_MOST_LIST]}
    if isinstance(value, (list, tuple)):
        return [_bounded(each) for each in value[:_MOST_LIST]]
    return value if isinstance(value, (int, float, bool)) else str(value)[:_MOST_TEXT]


def _write_whole(path: str, line: bytes) -> None:
    """Append it; what a full disk took of it only in part goes again. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, 0o600)
    try:
        before = os.fstat(fd).st_size
        if os.write(fd, line) != len(line):
            os.ftruncate(fd, before)
            raise OSError(28, "no space left on device")
    finally:
        os.close(fd)
