"""Who saved a checkpoint: the key that this host keeps, and what was not sealed with it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bufferzone.config import Settings
from bufferzone.errors import HostError
from bufferzone.snapshot import seal

MANIFEST: dict[str, Any] = {"container": "c", "files": {"memory": ["m", 1, "0" * 64]}, "created": 1}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(image_store=str(tmp_path / "images"))


@pytest.fixture
def sealed(settings: Settings) -> dict[str, Any]:
    return {**MANIFEST, seal.FIELD: seal.of(MANIFEST, seal.key(settings))}


def test_the_key_is_made_once_and_nobody_else_reads_it(settings: Settings, tmp_path: Path) -> None:
    first = seal.key(settings)
    assert len(first) == 32
    assert seal.key(settings) == first
    assert os.listdir(tmp_path) == ["checkpoint.key"]
    assert (tmp_path / "checkpoint.key").stat().st_mode & 0o777 == 0o600


def test_who_make_it_at_once_have_one_key(settings: Settings, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(seal.key(settings))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["checkpoint.key"]


def test_what_was_sealed_here_is_taken(settings: Settings, sealed: dict[str, Any]) -> None:
    for manifest in (sealed, dict(reversed(sealed.items()))):
        assert seal.of(manifest, seal.key(settings)) == sealed[seal.FIELD]
        seal.check(manifest, "/dir", settings)


@pytest.mark.parametrize(
    "change",
    [
        {"container": "d"},
        {"files": {"memory": ["m", 1, "1" * 64]}},
        {"created": True},
        {"more": None},
        {seal.FIELD: "0" * 64},
        {seal.FIELD: ""},
    ],
)
def test_what_was_changed_is_refused_in_one_line(
    settings: Settings, sealed: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(HostError, match="the checkpoint /dir was saved by another host") as caught:
        seal.check({**sealed, **change}, "/dir", settings)
    assert caught.value.code == "checkpoint-foreign"
    assert "foreign_checkpoints = true" in caught.value.line()
    seal.check({**sealed, **change}, "/dir", settings.with_values(foreign_checkpoints=True))


def test_what_another_host_sealed_is_refused(sealed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(HostError, match="another host"):
        seal.check(sealed, "/dir", Settings(image_store=str(tmp_path / "other" / "images")))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.chmod(0o640), "others may read it"),
        (lambda path: os.chown(path, 1234, -1), "belongs to another user"),
        (lambda path: path.write_bytes(b"short"), "is not 32 bytes long"),
        (lambda path: path.write_bytes(b"k" * 33), "is not 32 bytes long"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "symbolic link"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "is not 32 bytes long"),
    ],
)
def test_a_key_that_is_none_is_one_line_and_stays(
    settings: Settings, tmp_path: Path, spoil: Any, reason: str
) -> None:
    seal.key(settings)
    if os.geteuid() and "user" in reason:
        pytest.skip("needs root, to give a file away")
    spoil(tmp_path / "checkpoint.key")
    before = (tmp_path / "checkpoint.key").lstat()
    with pytest.raises(HostError, match=reason) as caught:
        seal.key(settings)
    assert caught.value.code == "checkpoint-key"
    assert (tmp_path / "checkpoint.key").lstat().st_ino == before.st_ino
