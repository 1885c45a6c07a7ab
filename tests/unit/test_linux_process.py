"""What a process gives up for good."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from bufferzone.linux import capabilities
from bufferzone.linux import process as lp
from unit.guest_harness import needs_root

pytestmark = needs_root


def goes_well(work: Callable[[], None]) -> bool:
    """Whether `work` does, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def test_the_bounding_set_is_what_was_kept_of_it() -> None:
    before, kept = capabilities.bounding(), lp.capability_mask(["CAP_CHOWN", "CAP_KILL", "CAP_SYS_RESOURCE"])

    def drop() -> None:
        lp.drop_bounding(kept)
        assert capabilities.bounding() == before & kept

    assert goes_well(drop)


def test_who_may_not_drop_is_told_so_where_there_is_something_to_drop() -> None:
    kept = lp.capability_mask(["CAP_CHOWN"])

    def drop() -> None:
        lp.drop_bounding(kept)
        lp.set_capabilities(effective=0, permitted=0, inheritable=0)
        lp.drop_bounding(kept)
        try:
            lp.drop_bounding(0)
        except PermissionError:
            return
        raise AssertionError("CAP_CHOWN was there to be dropped")

    assert goes_well(drop)
