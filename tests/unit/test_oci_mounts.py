"""What a mount of config.json is: as runc 1.1.5 does, for the host and behind the wall alike."""

from __future__ import annotations

from typing import Any

import pytest

from bufferzone.container import rootfs
from bufferzone.linux import mount as lm
from bufferzone.linux import mountoptions
from bufferzone.oci import mounts
from bufferzone.snapshot import compatible


@pytest.mark.parametrize(
    ("entry", "bind"),
    [
        ({"type": "bind", "options": ["bind", "ro"]}, True),
        ({"type": "none", "options": ["rbind"]}, True),
        ({"type": "tmpfs", "options": ["bind"]}, True),
        ({"options": ["bind"]}, True),
        ({"type": "bind"}, True),
        ({"type": "bind", "options": None}, True),
        ({"type": "tmpfs", "options": ["ro"]}, False),
        ({"type": "none"}, False),
        ({}, False),
    ],
)
def test_an_option_makes_a_bind_whatever_the_type_says(entry: dict[str, Any], bind: bool) -> None:
    assert mounts.is_bind(entry) == bind
    assert rootfs._dev_is_bound({"mounts": [{"destination": "/dev", **entry}]}) == bind


@pytest.mark.parametrize(
    ("options", "read_only"),
    [
        (["bind", "ro"], True),
        (["bind"], False),
        (["bind", "ro", "rw"], False),
        (["bind", "rw", "ro"], True),
        (["bind", "ro", "rw", "ro"], True),
        (["bind", "rro"], True),
        (["bind", "rro", "rw"], True),
        (["bind", "ro", "rrw"], False),
    ],
)
def test_the_last_of_ro_and_rw_counts_and_the_guest_agrees(options: list[str], read_only: bool) -> None:
    assert mounts.is_read_only({"options": options}) == read_only
    parsed = mountoptions.parse(options)
    set_, tree = bool(parsed.set & lm.MS_RDONLY), bool(parsed.tree_set & lm.MS_RDONLY)
    cleared = bool(parsed.tree_clear & lm.MS_RDONLY)
    assert ((set_ and not cleared) or tree) == read_only


def test_a_whole_tree_is_bound_by_rbind_or_where_nothing_is_said() -> None:
    found = [mounts.is_recursive({"options": options}) for options in (["rbind"], ["bind"], [], None)]
    assert found == [True, False, True, True]


def test_a_bundle_whose_volume_became_read_only_is_not_the_one_that_was_saved() -> None:
    def spec(*options: str) -> dict[str, Any]:
        entry = {"destination": "/v", "type": "bind", "source": "/s", "options": ["rbind", *options]}
        return {"process": {}, "root": {"path": "rootfs"}, "mounts": [entry]}

    saved = compatible.parts(spec("ro", "rw"))
    assert compatible.differences(saved, spec("rw", "ro")) == ["mounts"]
    assert compatible.differences(saved, spec("ro", "rw")) == []
