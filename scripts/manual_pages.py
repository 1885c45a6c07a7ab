#!/usr/bin/python3 -I
"""Prints the manual pages from the commands' own tables: scripts/manual_pages.py DIRECTORY

Source of the form: man-pages(7), groff_man(7).
"""

from __future__ import annotations

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import command_tables
from command_tables import spelled

from bufferzone import __version__
from bufferzone.shim import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bufferzone.cli.flags import Flag

_FILES = {
    "/etc/bufferzone/config.toml": "settings; every key is in /usr/share/doc/bufferzone/settings.md",
    "/etc/containers/containers.conf.d/50-bufferzone.conf": "tells Podman where bufferzone is",
    "/var/lib/bufferzone": "guest images and templates",
    "/run/bufferzone": "the state of root's containers",
}
_EXAMPLES = {
    "bufferzone": ("podman --runtime bufferzone run --rm busybox uname -r",),
    "bz": ("bz setup", "bz template make", "bz ps"),
    "containerd-shim-bufferzone-v2": (
        "ctr run --rm --runtime io.containerd.bufferzone.v2 IMAGE hello echo hello",
    ),
}
_SHIM = "containerd-shim-bufferzone-v2"
_SECTIONS = {"bufferzone": 1, "bz": 1, _SHIM: 8}


def main() -> int:
    (directory,) = sys.argv[1:]
    for name, page in pages(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))).items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(page)
    return 0


def pages(now: int) -> dict[str, str]:
    """The text of every page by its file's name; `now` is the date in seconds."""
    date = time.strftime("%Y-%m-%d", time.gmtime(now))
    found = {_file(program.name): _of_program(program, date) for program in command_tables.programs()}
    return {**found, _file(_SHIM): _of_shim(date)}


def _file(name: str) -> str:
    return f"{name}.{_SECTIONS[name]}"


def escaped(text: str) -> str:
    """Text that groff prints as it is: no escape, no request, a dash that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def _of_program(program: command_tables.Program, date: str) -> str:
    lines = _head(program.name, program.summary, program.usage, date)
    lines += [".SH OPTIONS", *_options(program.flags), ".SH COMMANDS"]
    for verb in program.verbs:
        lines += [f".SS {escaped(verb.name)} {escaped(verb.usage)}".rstrip()]
        lines += [escaped(f"{verb.summary[0].upper()}{verb.summary[1:]}.")]
        lines += [escaped(line.strip()) for line in verb.description.splitlines() if line.strip()]
        lines += _options([flag for flag in verb.flags if flag is not command_tables.HELP])
    return "\n".join([*lines, *_tail(program.name)])


def _of_shim(date: str) -> str:
    lines = _head(_SHIM, "runs containers of containerd in virtual machines", "[flags] ACTION", date)
    lines += [
        ".SH DESCRIPTION",
        "containerd starts this program, which is to be on its PATH, once per sandbox.",
    ]
    lines += ["bufferzone(1) starts it too. Nobody else calls it. The actions are"]
    lines += [escaped(", ".join(arguments.ACTIONS)) + ".", ".SH OPTIONS"]
    for name, help in (*arguments.WITH_VALUE.items(), *arguments.SWITCHES.items()):
        value = " \\fIVALUE\\fR" if name in arguments.WITH_VALUE else ""
        lines += [".TP", f"\\fB{escaped('-' + name)}\\fR{value}", escaped(help)]
    return "\n".join([*lines, *_tail(_SHIM)])


def _head(name: str, summary: str, usage: str, date: str) -> list[str]:
    title = f'.TH {escaped(name.upper())} {_SECTIONS[name]} {date} "bufferzone {__version__}"'
    said = [".SH NAME", f"{escaped(name)} \\- {escaped(summary)}"]
    return [title, *said, ".SH SYNOPSIS", f".B {escaped(name)}", escaped(usage)]


def _options(flags: Sequence[Flag]) -> list[str]:
    """The table of one verb; what is accepted without effect comes last, and says so."""
    lines: list[str] = []
    for flag in sorted(flags, key=lambda flag: flag.ignored):
        names = ", ".join(f"\\fB{escaped(spelled(name))}\\fR" for name in flag.names)
        value = f" \\fI{escaped(flag.metavar)}\\fR" if flag.metavar else ""
        default = f" (default: {flag.default})" if flag.default not in (None, "") else ""
        ignored = "Accepted, without effect: " if flag.ignored else ""
        lines += [".TP", names + value, escaped(f"{ignored}{flag.help}{default}")]
    return lines


def _tail(name: str) -> Iterable[str]:
    lines = [".SH EXAMPLES", ".nf", *(escaped(line) for line in _EXAMPLES[name]), ".fi", ".SH FILES"]
    for path, what in _FILES.items():
        lines += [".TP", f".I {escaped(path)}", escaped(what)]
    others = [f"{escaped(other)}({section})" for other, section in _SECTIONS.items() if other != name]
    return [*lines, ".SH SEE ALSO", ", ".join([*others, "podman(1)"]), ""]


if __name__ == "__main__":
    sys.exit(main())
