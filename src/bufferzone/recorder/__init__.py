"""The flight recorder: what became of containers, one line each, which cannot be changed unseen.

    DIRECTORY/records.jsonl      the newest lines
    DIRECTORY/records-N.jsonl    older ones, from line N on; `KEEP` of them
    DIRECTORY/head.json          number and hash of the last line, number of the first
    DIRECTORY/lock               flock(2) of whoever writes

A line is a JSON object: `seq`, `time`, `id` (a container's, or a sandbox's), `event`, what belongs to it,
`prev` (the hash of the line before) and `hash`, the SHA-256 of the line without it. So a line that was
changed, left out, put in or moved is found; lines cut off the end are, by `head.json`. Who may write the
directory, root, can make all of it anew: keep the hash that `bz log head` prints somewhere else.

`journal` writes, for shims; `chain` reads and verifies, for `bz log`. No environment, argument or output of a
program is recorded.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bufferzone.config import Settings
    from bufferzone.recorder.journal import Journal


def place(settings: Settings) -> str:
    """The directory of the records: beside the store of guest images."""
    return os.path.join(os.path.dirname(settings.image_store.rstrip("/")), "records")


class Silent:
    """Records nothing: the setting is off."""

    on = False

    def note(self, event: str, id: str = "", **facts: object) -> None:
        """Nothing."""


def of(settings: Settings, sandbox_id: str) -> Journal | Silent:
    """The recorder of a sandbox; without the setting nothing is imported, opened or written."""
    if not settings.recorder:
        return Silent()
    from bufferzone.recorder import journal

    return journal.Journal(place(settings), sandbox_id)
