"""The commands' own tables of verbs and flags, as manual pages and shell completion are printed from them."""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src"))
from bufferzone.cli import bz, main, oci
from bufferzone.cli.bz import main as bz_main
from bufferzone.cli.flags import Flag

#: (names, metavar, help) of what every program and verb takes beside its table
HELP = Flag("help h", "", "say what there is")


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: `usage` as its help prints it, `description` its lines."""

    name: str
    summary: str
    usage: str
    description: str
    flags: tuple[Flag, ...]

    @property
    def words(self) -> list[str]:
        """The words of the usage that are to be typed as they are: `ls`, `make`."""
        return re.findall(r"\b[a-z]+\b", re.sub(r"\[.*?\]|<.*?>", "", self.usage))

    @property
    def takes_id(self) -> bool:
        """Whether a word names a container."""
        return bool(re.search(r"<container-id>|\bID\b", self.usage))


@dataclass(frozen=True, slots=True)
class Program:
    """A command: `flags` stand before the verb."""

    name: str
    summary: str
    usage: str
    flags: tuple[Flag, ...]
    verbs: tuple[Verb, ...]


def programs() -> tuple[Program, ...]:
    """`bufferzone` and `bz`."""
    oci_verbs = [
        _verb(f"bufferzone.cli.oci.{module}", verb, summary) for verb, (module, summary) in oci.VERBS.items()
    ]
    bz_verbs = [_verb(f"bufferzone.cli.bz.{verb}", verb, summary) for verb, summary in bz.VERBS.items()]
    return (
        Program(
            "bufferzone",
            main.SUMMARY,
            main.USAGE,
            _shown(main.GLOBAL),
            tuple(oci_verbs),
        ),
        Program("bz", bz_main.SUMMARY, bz_main.USAGE, _shown(bz_main.GLOBAL), tuple(bz_verbs)),
    )


def _verb(module_name: str, verb: str, summary: str) -> Verb:
    module = importlib.import_module(module_name)
    return Verb(verb, summary, module.USAGE, module.DESCRIPTION, _shown(module.FLAGS))


def _shown(flags: tuple[Flag, ...]) -> tuple[Flag, ...]:
    return tuple(flag for flag in (*flags, HELP) if not flag.hidden)


def spelled(name: str) -> str:
    """A flag as it is typed: one dash for a letter, two for a word."""
    return ("--" if len(name) > 1 else "-") + name
