"""`--regex`, as crun has it: a verb for every container whose id a regular expression matches."""

from __future__ import annotations

from bufferzone import state
from bufferzone.cli.flags import Flag
from bufferzone.errors import BufferzoneError, UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bufferzone.cli.flags import Options

REGEX = Flag("regex r", "", "the id is a regular expression, for every container that it matches somewhere")


def each(options: Options, id: str, work: Callable[[str], None]) -> None:
    """Do `work` for the container `id`, or with --regex for every one that it matches, which may be none.

    Raises `UsageError` for a bad expression; else what the first failure raised, after the other containers.
    """
    failures: list[BufferzoneError] = []
    for found in _matching(state.list_ids(state.runtime_root(options.root)), id) if options.regex else [id]:
        try:
            work(found)
        except BufferzoneError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _matching(ids: list[str], pattern: str) -> list[str]:
    import re  # most calls have none, and it is slow to import

    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--regex: {error}: {shown(pattern)}") from error
    return [id for id in ids if wanted.search(id)]
