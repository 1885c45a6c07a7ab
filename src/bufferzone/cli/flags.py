"""Command lines as tables: one row per flag gives parser and help. Reads what Go's flag package reads:

    --x=y   --x y   -x y   -long (one dash will do)   --bool=false   -abc (short ones together)   -- ends them

No argparse: it costs as much as a bare interpreter start.
"""

from __future__ import annotations

from bufferzone.errors import UsageError
from bufferzone.log import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_WIDTH = 108


class Flag:
    """One row. `kind` is str, bool, int, list or choice, whose metavar are the words that may be given; an
    `ignored` flag is accepted and has no effect.
    """

    __slots__ = ("default", "help", "hidden", "ignored", "kind", "metavar", "names")

    def __init__(
        self,
        names: str,
        metavar: str,
        help: str,
        *,
        kind: str = "",
        default: Any = None,
        hidden: bool = False,
    ) -> None:
        self.names = tuple(names.split())
        self.metavar = metavar
        self.kind = kind or ("str" if metavar else "bool")
        self.default = default
        self.help = help
        self.hidden = hidden
        self.ignored = False

    @property
    def attribute(self) -> str:
        """The name in `Options`: the long one, with underscores."""
        return self.names[0].replace("-", "_")

    def start(self) -> Any:
        """The value when the flag is not given."""
        if self.kind == "list":
            return []
        if self.default is not None:
            return self.default
        return {"str": "", "choice": "", "bool": False, "int": 0}[self.kind]


def ignored(names: str, metavar: str, help: str) -> Flag:
    """A flag of runc's that has nothing to act on here."""
    flag = Flag(names, metavar, help)
    flag.ignored = True
    return flag


class Options:
    """What a command line said: one attribute per flag, and `given`, the attributes that were set.

    `separated`: `--` ended the flags, with no word before it.
    """

    def __init__(self, flags: Sequence[Flag]) -> None:
        self.given: set[str] = set()
        self.separated = False
        for flag in flags:
            self.__dict__[flag.attribute] = flag.start()

    def take(self, **values: Any) -> None:
        """Add what the program itself was told, beside the verb's own flags."""
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...


def parse(flags: Sequence[Flag], words: Sequence[str], *, interspersed: bool) -> tuple[Options, list[str]]:
    """Flags and what is left. With `interspersed`, flags may follow words, else the first word ends them.

    Raises `UsageError`; `--help` and, where no flag has that letter, `-h` set `help` and end the parsing.
    """
    by_name = {name: flag for flag in flags for name in flag.names}
    options, at = Options(flags), 0
    rest: list[str] = []
    options.help = False
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            options.separated = not rest
            return options, [*rest, *words[at:]]
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if not interspersed:
                return options, [*rest, *words[at:]]
            continue
        if word in ("--help", "-help") or (word == "-h" and "h" not in by_name):
            options.help = True
            return options, rest
        at = _take(options, by_name, word, words, at)
    return options, rest


def _take(options: Options, by_name: dict[str, Flag], word: str, words: Sequence[str], at: int) -> int:
    name, equals, value = word.lstrip("-").partition("=")
    flag = by_name.get(name)
    if flag is None and not word.startswith("--") and not equals:
        return _take_together(options, by_name, word, words, at)
    if flag is None or word.startswith("---"):
        raise UsageError(f"flag provided but not defined: {shown(word.partition('=')[0])}")
    if flag.kind == "bool":
        _set(options, flag, value if equals else "true")
        return at
    if not equals:
        if at >= len(words):
            raise UsageError(f"flag needs an argument: {shown(word)}")
        value, at = words[at], at + 1
    _set(options, flag, value)
    return at


def _take_together(
    options: Options, by_name: dict[str, Flag], word: str, words: Sequence[str], at: int
) -> int:
    found = [by_name.get(letter) for letter in word[1:]]
    if len(found) < 2 or any(f is None for f in found) or any(f and f.kind != "bool" for f in found[:-1]):
        raise UsageError(f"flag provided but not defined: {shown(word)}")
    for letter in word[1:]:
        at = _take(options, by_name, "-" + letter, words, at)
    return at


def _set(options: Options, flag: Flag, text: str) -> None:
    value: Any = text
    if flag.kind == "bool":
        if text not in ("true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False"):
            raise UsageError(f"invalid boolean value {shown(text)} for flag: --{flag.names[0]}")
        value = text[0] in "1tT"
    elif flag.kind == "int":
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise UsageError(f"invalid number {shown(text)} for flag: --{flag.names[0]}")
        value = int(text)
    elif flag.kind == "choice" and text not in (words := flag.metavar.split("|")):
        known = f"{', '.join(words[:-1])} or {words[-1]}"
        raise UsageError(f"--{flag.names[0]}: expected {known}, got {shown(text)}")
    if flag.kind == "list":
        options.__dict__[flag.attribute].append(value)
    else:
        options.__dict__[flag.attribute] = value
    options.given.add(flag.attribute)


def help_text(name: str, summary: str, usage: str, description: str, flags: Sequence[Flag]) -> str:
    """The help page of a program or verb, from its table."""
    parts = [f"NAME:\n   {name} - {summary}\n", f"USAGE:\n   {name} {usage}\n"]
    if description:
        parts.append(
            "DESCRIPTION:\n" + "\n".join(f"   {line}".rstrip() for line in description.splitlines()) + "\n"
        )
    for title, chosen in (
        ("OPTIONS", [f for f in flags if not f.ignored and not f.hidden]),
        ("ACCEPTED, WITHOUT EFFECT IN A VM", [f for f in flags if f.ignored]),
    ):
        if chosen:
            parts.append(f"{title}:\n" + "".join(_help_rows(chosen)))
    return "\n".join(parts)


def _help_rows(flags: Sequence[Flag]) -> list[str]:
    heads = []
    for flag in flags:
        names = ", ".join(("--" if len(name) > 1 else "-") + name for name in flag.names)
        heads.append(f"{names} {flag.metavar}".rstrip())
    width = min(34, max(len(head) for head in heads))
    rows = []
    for head, flag in zip(heads, flags, strict=True):
        tail = f" (default: {flag.default})" if flag.default not in (None, "") else ""
        lines = _wrap(flag.help + tail, _WIDTH - width - 6)
        rows.append(f"   {head.ljust(width)}  {lines[0]}\n")
        rows += [" " * (width + 5) + line + "\n" for line in lines[1:]]
    return rows


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines
