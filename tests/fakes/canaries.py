"""Secrets that are planted, and where on a host one of them can be found again.

Looks at command lines and environments of all processes, and at files with their modes. A process of the
guest is none of the host's; who calls says which those are.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

#: where a secret is planted
KINDS = ("env", "args", "mount", "stdin", "exec", "host")


class Canaries:
    """One word a kind, which nobody else writes: `env`, `args`, `mount`, `stdin`, `exec`, `host`."""

    def __init__(self) -> None:
        self.words = {kind: f"canary-{kind}-{uuid.uuid4().hex}" for kind in KINDS}

    def __getattr__(self, kind: str) -> str:
        return self.words[kind]

    def in_text(self, text: str | bytes) -> list[str]:
        """Those that `text` has."""
        data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        return [kind for kind, word in self.words.items() if word.encode() in data]

    def on_command_lines(self, but: Iterable[int] = ()) -> list[str]:
        """`PID kind` for each command line of the host that has one."""
        return self._in_proc("cmdline", {os.getpid(), *but})

    def in_environments(self, pids: Iterable[int]) -> list[str]:
        """The same for the environments of these processes."""
        every = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        return self._in_proc("environ", every - set(pids))

    def _in_proc(self, name: str, but: set[int]) -> list[str]:
        found = []
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            try:
                data = b"" if pid in but else Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue  # it has ended
            found += [f"{pid} {kind}" for kind in self.in_text(data)]
        return found

    def in_files(self, *roots: Path) -> dict[str, list[str]]:
        """path -> kinds, for each file below these directories that has one."""
        found = {}
        for path in (path for root in roots for path in root.rglob("*")):
            if path.is_file() and not path.is_symlink() and (kinds := self.in_text(path.read_bytes())):
                found[str(path)] = kinds
        return found


def open_to_others(path: str | Path, top: Path) -> bool:
    """Whether anybody but its owner gets to this file, through its directories from `top` on."""
    path = Path(path)
    within = [path, *(parent for parent in path.parents if parent.is_relative_to(top))]
    return all(each.stat().st_mode & (0o007 if each == path else 0o001) for each in within)
