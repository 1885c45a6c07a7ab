"""Who is to blame for a start that is cold: the template, or the machine on which nothing starts."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from bufferzone.errors import VmmError
from bufferzone.guestimage import template_store
from bufferzone.sandbox import origin
from unit.test_template_store import KEY, make

SETTINGS = SimpleNamespace(templates=True, image_store="")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: templates are root's")


def with_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with one template, which every VM is of the shape of."""
    store = str(tmp_path / "templates")
    make(store)
    monkeypatch.setattr(origin, "template_key", lambda shape: KEY)
    monkeypatch.setattr(template_store, "default_store", lambda image_store: store)
    return store


@pytest.mark.parametrize(("cold_boot_works", "left"), [(True, []), (False, [KEY])])
def test_a_template_is_removed_where_it_is_refused_and_a_cold_boot_works(
    cold_boot_works: bool, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile that denies what a helper needs, a full disk: the next start finds the template as it was."""
    said: list[str] = []
    store = with_template(tmp_path, monkeypatch)
    with ExitStack() as stack:
        warm = origin.Warm(stack, SimpleNamespace(), SETTINGS, said.append)
        assert warm.template is not None
        warm.refused(VmmError("virtiofsd ended"))
        assert said == ["booting cold, the template is of no use: virtiofsd ended"]
        warm.boot_ended(cold_boot_works)
    assert [row["key"] for row in template_store.listing(store)] == left


@pytest.mark.parametrize(("woke", "left"), [(True, [KEY]), (False, []), (None, [KEY])])
def test_a_template_is_removed_where_its_guest_did_not_wake_and_not_where_the_host_ended_it(
    woke: bool | None, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = with_template(tmp_path, monkeypatch)
    with ExitStack() as stack:
        warm = origin.Warm(stack, SimpleNamespace(), SETTINGS, lambda text: None)
        warm.let_go()
        warm.boot_ended(woke)
    assert [row["key"] for row in template_store.listing(store)] == left
