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

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: templates are root's")


@pytest.mark.parametrize(("cold_boot_works", "left"), [(True, []), (False, [KEY])])
def test_a_template_is_removed_where_it_is_refused_and_a_cold_boot_works(
    cold_boot_works: bool, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile that denies what a helper needs, a full disk: the next start finds the template as it was."""
    store, said = str(tmp_path / "templates"), []
    make(store)
    monkeypatch.setattr(origin, "template_key", lambda shape: KEY)
    monkeypatch.setattr(template_store, "default_store", lambda image_store: store)
    settings = SimpleNamespace(templates=True, image_store="")
    with ExitStack() as stack:
        warm = origin.Warm(stack, SimpleNamespace(), settings, said.append)
        assert warm.template is not None
        warm.refused(VmmError("virtiofsd ended"))
        assert said == ["booting cold, the template is of no use: virtiofsd ended"]
        warm.boot_ended(cold_boot_works)
    assert [row["key"] for row in template_store.listing(store)] == left
