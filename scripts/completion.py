#!/usr/bin/python3 -I
"""Prints shell completion from the commands' own tables: scripts/completion.py bash|zsh|fish PROGRAM

Source of the forms: bash(1) "Programmable Completion", zshcompsys(1), fish complete(1).
"""

from __future__ import annotations

import os
import shlex
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import command_tables
from command_tables import Program, Verb, spelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from bufferzone.cli.flags import Flag

#: metavar -> what it names
_FILES = {"FILE", "FILE|-", "PATH"}
_DIRECTORIES = {"DIR"}
_IDS = "bufferzone list --quiet 2>/dev/null"

# What is the same for every program. Words are as readline splits them, with = alone between a flag and its
# value (COMP_WORDBREAKS).
_BASH = """
_{function}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} verb= words= at word
    COMPREPLY=()
    [ "$current" != = ] || current=
    [ "$previous" != = ] || previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${{COMP_WORDS[at]}}
        case $word in
            {valued}) [ "${{COMP_WORDS[at + 1]}}" != = ] || at=$((at + 1)); at=$((at + 1)) ;;
            -*) ;;
            *) verb=$word && break ;;
        esac
    done
    case "$verb $previous" in
{values}    esac
    case $verb in
{verbs}    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -F _{function} {name}
"""


def main() -> int:
    shell, name = sys.argv[1:]
    (program,) = (program for program in command_tables.programs() if program.name == name)
    sys.stdout.write(SHELLS[shell](program))
    return 0


def choices(flag: Flag) -> list[str]:
    """The values that a flag takes, where its metavar says them all: text|json."""
    words = flag.metavar.split("|")
    return words if len(words) > 1 and flag.metavar == flag.metavar.lower() else []


def _names(flags: Sequence[Flag]) -> list[str]:
    return [spelled(name) for flag in flags for name in flag.names]


# ---- bash


def bash(program: Program) -> str:
    """One function and one `complete` line."""
    values = [row for verb in ("", *program.verbs) for row in _bash_values(verb, _flags_of(program, verb))]
    verbs = [
        f"        '') words={_quoted([verb.name for verb in program.verbs] + _names(program.flags))} ;;\n"
    ]
    verbs += [_bash_verb(verb) for verb in program.verbs]
    valued = [name for flag in program.flags if flag.metavar for name in _names([flag])]
    head = f"# bash completion for {program.name}(1), printed by scripts/completion.py\n"
    return head + _BASH.format(
        function=f"{program.name}_completion",
        name=program.name,
        valued=" | ".join(valued),
        values="".join(values),
        verbs="".join(verbs),
    )


def _flags_of(program: Program, verb: Verb | str) -> Sequence[Flag]:
    return program.flags if isinstance(verb, str) else verb.flags


def _bash_values(verb: Verb | str, flags: Sequence[Flag]) -> list[str]:
    """What follows a flag that takes a value: one row of a `case` each."""
    name, rows = verb if isinstance(verb, str) else verb.name, []
    for flag in flags:
        if not flag.metavar:
            continue
        pattern = " | ".join(f"'{name} {each}'" for each in _names([flag]))
        if choices(flag):
            action = f"words={_quoted(choices(flag))}"
            rows.append(f"        {pattern}) {action}\n            verb=/ ;;\n")
        else:
            kind = {True: "-d", False: "-f"}[flag.metavar in _DIRECTORIES]
            files = flag.metavar in _DIRECTORIES | _FILES
            action = f'compopt -o filenames; mapfile -t COMPREPLY < <(compgen {kind} -- "$current")'
            rows.append(f"        {pattern}) {action if files else ':'}\n            return ;;\n")
    return rows


def _bash_verb(verb: Verb) -> str:
    words = _quoted([*verb.words, *_names(verb.flags)])
    ids = f'; [[ $current == -* ]] || words+=" $({_IDS})"' if verb.takes_id else ""
    return f"        {verb.name}) words={words}{ids} ;;\n"


def _quoted(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


# ---- zsh


def zsh(program: Program) -> str:
    """A function for zsh's fpath: `_arguments` for the program, and for each verb."""
    lines = [f"#compdef {program.name}", f"# zsh completion for {program.name}(1), see scripts/completion.py"]
    lines += ["local context state state_descr line", "typeset -A opt_args", "local -a verbs ids"]
    rows = [_zsh_quote(f"{verb.name}:{verb.summary}") for verb in program.verbs]
    lines += [f"verbs=({' '.join(rows)})", "_arguments -C \\"]
    lines += [f"    {spec} \\" for spec in _zsh_flags(program.flags)]
    lines += ["    '1:command:->verb' '*::argument:->arguments'", "case $state in"]
    lines += [f"    verb) _describe -t commands '{program.name} command' verbs ;;", "    arguments)"]
    lines += [f'        ids=(${{(f)"$({_IDS})"}})', "        case $words[1] in"]
    for verb in program.verbs:
        rest = [f"'*:word:({' '.join(verb.words)})'"] if verb.words else []
        rest = ["'1:container:($ids)'", "'*:argument:_files'"] if verb.takes_id else rest
        specs = " ".join([*_zsh_flags(verb.flags), *rest])
        lines += [f"            {verb.name}) _arguments {specs} ;;"]
    return "\n".join([*lines, "        esac ;;", "esac", ""])


def _zsh_flags(flags: Sequence[Flag]) -> list[str]:
    specs = []
    for flag in flags:
        value = ""
        if choices(flag):
            value = f":value:({' '.join(choices(flag))})"
        elif flag.metavar:
            action = "_files -/" if flag.metavar in _DIRECTORIES else "_files"
            value = f":value:{action if flag.metavar in _DIRECTORIES | _FILES else ''}"
        text = flag.help.replace("[", "(").replace("]", ")").replace(":", " ")
        repeated = "*" if flag.kind == "list" else ""
        specs += [_zsh_quote(f"{repeated}{name}[{text}]{value}") for name in _names([flag])]
    return specs


def _zsh_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish


def fish(program: Program) -> str:
    """One `complete` line per verb and flag."""
    begin = f"complete -c {program.name}"
    lines = [f"# fish completion for {program.name}(1), printed by scripts/completion.py", f"{begin} -f"]
    lines += [_fish_flag(f"{begin} -n __fish_use_subcommand", flag) for flag in program.flags]
    for verb in program.verbs:
        lines += [f"{begin} -n __fish_use_subcommand -a {verb.name} -d {_fish_quote(verb.summary)}"]
        there = f"{begin} -n '__fish_seen_subcommand_from {verb.name}'"
        lines += [_fish_flag(there, flag) for flag in verb.flags]
        if verb.words:
            lines += [f"{there} -a {_fish_quote(' '.join(verb.words))}"]
        if verb.takes_id:
            lines += [f"{there} -a '({_IDS})'"]
    return "\n".join([*lines, ""])


def _fish_flag(begin: str, flag: Flag) -> str:
    names = " ".join(("-l " if len(name) > 1 else "-s ") + name for name in flag.names)
    value = " -x" if flag.metavar else ""
    if choices(flag):
        value += f" -a {_fish_quote(' '.join(choices(flag)))}"
    elif flag.metavar in _DIRECTORIES:
        value += " -a '(__fish_complete_directories)'"
    elif flag.metavar in _FILES:
        value = " -r -F"
    return f"{begin} {names}{value} -d {_fish_quote(flag.help)}"


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}

if __name__ == "__main__":
    sys.exit(main())
