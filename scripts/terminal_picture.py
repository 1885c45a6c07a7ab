#!/usr/bin/python3 -I
"""Draws docs/terminal.svg: the first commands of README.md, run here on a terminal, with what they really
print and when: scripts/terminal_picture.py >docs/terminal.svg

The shell commands are those of the first block that the tests run, the Python lines those of the first
Python block, typed to `python3`. The picture is one text a line and a style: no script, nothing from
elsewhere. Where animations are shown its lines come as they came here, a little later after each that is
typed, and stay.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
import termios
import time
from typing import NamedTuple, Self
from xml.sax.saxutils import escape

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLUMNS, ROWS = 96, 40
DEADLINE_S = 120.0  # for an answer
PROMPTS = (">>> ", "... ")
READING_S = 0.7  # what the picture waits after a line that is typed
_BLOCK = r"^```{}\n((?:.*\n)*?)```$"

#: px of a column at most in usual fonts, of a line, around all
COLUMN, LINE, AROUND = 8.0, 21, 18
STYLE = """
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
text{fill:#dde3ea;white-space:pre}
.p{fill:#7ee2a8}.c{fill:#fff}.t{fill:#aab4c0}
@media(prefers-reduced-motion:no-preference){g{animation:s .01s backwards}}
@keyframes s{from{opacity:0}}
"""


class Line(NamedTuple):
    """A line of the terminal: `at_s` is when it came, `took_s` how long what was typed took, 0: not told."""

    text: str
    at_s: float
    prompt: str = ""
    took_s: float = 0.0


def commands(readme: str) -> tuple[list[str], list[str]]:
    """The shell commands and the Python lines that README.md begins with."""
    shell, program = (re.search(_BLOCK.format(kind), readme, re.MULTILINE) for kind in ("sh", "python"))
    if shell is None or program is None:
        raise SystemExit("terminal_picture.py: README.md: no block of sh or python")
    return shell[1].splitlines(), [line for line in program[1].splitlines() if line]


class Terminal:
    """A program on a terminal of its own; it ends with the `with` block."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._fd, theirs = os.openpty()
        termios.tcsetwinsize(self._fd, (ROWS, COLUMNS))
        try:
            self._process = subprocess.Popen(
                argv, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
            )
        finally:
            os.close(theirs)

    def read_until(self, ends: tuple[str, ...]) -> list[tuple[str, float]]:
        """(line, when it began) until what is printed ends so; without `ends` until the program does."""
        lines, begun = [""], [time.monotonic()]
        while not (ends and lines[-1] in ends):
            if not select.select([self._fd], [], [], DEADLINE_S)[0]:
                raise SystemExit(f"terminal_picture.py: no answer: {lines[-1]!r}")
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: nobody has the other side any more
                data = b""
            if not data:
                break
            for index, part in enumerate(data.decode(errors="replace").replace("\r", "").split("\n")):
                if index:
                    lines.append("")
                    begun.append(time.monotonic())
                if part and not lines[-1]:
                    begun[-1] = time.monotonic()
                lines[-1] += part
        return list(zip(lines, begun, strict=True))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        return self._process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._process.kill()
        self._process.wait()


def environment() -> dict[str, str]:
    """This checkout's programs and library."""
    return {
        "PATH": f"{ROOT}/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "PYTHONPATH": f"{ROOT}/src",
        "PYTHON_BASIC_REPL": "1",  # since 3.13 there is one with colours
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }


def of_command(command: str) -> list[Line]:
    """Run a shell command that is a program and its words. A failure ends the script."""
    began = time.monotonic()
    with Terminal(shlex.split(command), environment()) as terminal:
        said = terminal.read_until(())
        took_s = time.monotonic() - began
        if terminal.wait():
            raise SystemExit(f"terminal_picture.py: {command}: {said}")
    printed = [Line(text=text, at_s=at_s) for text, at_s in said if text]
    return [Line(prompt="$ ", text=command, at_s=began, took_s=took_s), *printed]


def of_python(program: list[str]) -> list[Line]:
    """Type a program to an interpreter, line by line, and an empty one that ends a block."""
    found = [Line(prompt="$ ", text="python3", at_s=time.monotonic())]
    with Terminal(["/usr/bin/python3", "-q"], environment()) as terminal:
        prompt = terminal.read_until(PROMPTS)[-1][0]
        for text in [*program, ""]:
            began = time.monotonic()
            terminal.type(f"{text}\n")
            _, *said, (answer, _) = terminal.read_until(PROMPTS)
            took_s = time.monotonic() - began if said else 0.0
            found.append(Line(prompt=prompt, text=text, at_s=began, took_s=took_s))
            found += [Line(text=line, at_s=at_s) for line, at_s in said if line]
            prompt = answer
        terminal.type("\x04")
        terminal.read_until(())
    return found


def picture(lines: list[Line]) -> str:
    """The SVG of these lines."""
    width, height = round(COLUMNS * COLUMN) + 2 * AROUND, len(lines) * LINE + 2 * AROUND - 6
    words = "; ".join(f"{line.prompt}{line.text}" for line in lines if line.text)
    frame = f'width="{width - 1}" height="{height - 1}" rx="8" fill="#161b22" stroke="#59636e"'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" xml:space="preserve">',
        f"<title>{escape(words)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect x=".5" y=".5" {frame}/>',
    ]
    waited_s = 0.0
    for number, line in enumerate(lines):
        y = AROUND + 10 + number * LINE
        delay_s = line.at_s - lines[0].at_s + waited_s
        kind = "c" if line.prompt else "o"
        prompt = f'<tspan class="p">{escape(line.prompt)}</tspan>' if line.prompt else ""
        row = f'<text x="{AROUND}" y="{y}">{prompt}<tspan class="{kind}">{escape(line.text)}</tspan></text>'
        rows.append(f'<g style="animation-delay:{delay_s:.2f}s">{row}</g>')
        if line.took_s:
            told = (
                f'<text x="{width - AROUND}" y="{y}" text-anchor="end" class="t">{line.took_s:.1f} s</text>'
            )
            rows.append(f'<g style="animation-delay:{delay_s + READING_S + line.took_s:.2f}s">{told}</g>')
        waited_s += READING_S if line.prompt else 0.0
    return "\n".join([*rows, "</svg>", ""])


def main() -> None:
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        shell, program = commands(file.read())
    lines = [line for command in shell for line in of_command(command)]
    sys.stdout.write(picture(lines + of_python(program)))


if __name__ == "__main__":
    main()
