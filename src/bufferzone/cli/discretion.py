"""What others may see of a command line: `ps` shows it to every user, for as long as a container or an exec
that we stand for lives. Values of environment variables are not for them.
"""

from __future__ import annotations

import os

from bufferzone.log import passing_over

_HIDDEN = b"="


def hide_values(given: list[str]) -> None:
    """Take the values of these NAME=VALUE out of what `ps` shows of us and of what we fork. Never raises."""
    secret = [os.fsencode(word) for word in given if "=" in word]
    if not secret:
        return
    from bufferzone.linux import title

    with passing_over("hide values of the environment from ps", OSError):
        with open("/proc/self/cmdline", "rb") as file:
            words = file.read().split(b"\0")[:-1]
        title.set_command_line([os.fsdecode(_hidden(word, secret)) for word in words])


def _hidden(word: bytes, secret: list[bytes]) -> bytes:
    """`-e NAME=VALUE` and `--env=NAME=VALUE` alike, without the value."""
    for pair in secret:
        if word.endswith(pair):
            return word[: len(word) - len(pair)] + pair.partition(b"=")[0] + _HIDDEN
    return word
