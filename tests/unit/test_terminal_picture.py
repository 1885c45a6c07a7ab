"""The picture that README.md begins with: of its own commands, light, harmless; and how it is made."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from unit.test_scripts import load

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PICTURE = (ROOT / "docs" / "terminal.svg").read_text()
SVG = "{http://www.w3.org/2000/svg}"
#: all that is needed for text; nothing of it runs or fetches anything
TAGS = {"svg", "title", "style", "rect", "g", "text", "tspan"}
ATTRIBUTES = set(
    "width height viewBox role x y rx fill stroke style class text-anchor "
    "{http://www.w3.org/XML/1998/namespace}space".split()
)


@pytest.fixture(scope="module")
def script():
    return load("terminal_picture")


def shown(svg: str) -> list[str]:
    """The lines of the terminal."""
    texts = [text for text in ET.fromstring(svg).iter(f"{SVG}text") if text.get("class") != "t"]
    return ["".join(text.itertext()) for text in texts]


def typed(svg: str) -> list[str]:
    """What was typed, with its prompts."""
    return [line for line in shown(svg) if re.match(r"(\$|>>>|\.\.\.) ", line)]


def test_its_commands_are_those_that_the_readme_begins_with(script):
    shell, program = script.commands(README)
    words = [line[4:] for line in typed(PICTURE) if not line.startswith("$ ") and line != "... "]
    assert [line[2:] for line in typed(PICTURE) if line.startswith("$ ")] == [*shell, "python3"]
    assert words == program
    again = "run: scripts/terminal_picture.py >docs/terminal.svg"
    assert shown(PICTURE).count("42") == 2, again


def test_it_stands_above_all_else_and_says_in_words_what_it_shows():
    first = README.splitlines()[2]
    told = re.fullmatch(r"!\[(.+)\]\(docs/terminal\.svg\)", first)
    assert told is not None
    assert len(told[1]) > 40


def test_it_is_light_text_that_runs_and_fetches_nothing():
    assert len(PICTURE) < 40_000
    found = [*ET.fromstring(PICTURE).iter()]
    assert {element.tag for element in found} <= {SVG + tag for tag in TAGS}
    assert {name for element in found for name in element.attrib} <= ATTRIBUTES
    assert PICTURE.count("http") == 1  # the name of the format
    assert not re.search(r"url\(|@import|<!|<\?|&(?!amp;|lt;|gt;|quot;)", PICTURE)


def test_it_is_read_on_a_light_and_on_a_dark_page():
    """The ground is its own, and its texts differ from it by the 7:1 of WCAG 2.1, 1.4.6."""
    ground = re.search(r'<rect [^>]*fill="#(\w+)"', PICTURE)
    texts = re.findall(r"fill:#(\w+)", PICTURE)
    assert len(texts) == 4
    for text in texts:
        assert (luminance(text) + 0.05) / (luminance(ground[1]) + 0.05) >= 7, text


def luminance(colour: str) -> float:
    """Of WCAG 2.1, 0 to 1."""
    width = len(colour) // 3
    parts = [int(colour[n : n + width] * (3 - width), 16) / 255 for n in range(0, len(colour), width)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_program_has_the_time_it_took(script):
    times = re.findall(r'class="t">(\d+\.\d) s<', PICTURE)
    assert len(times) == len(script.commands(README)[0]) + 1
    assert all(float(each) > 0 for each in times)


def test_what_a_program_prints_on_its_terminal_is_recorded(script):
    words = f"{sys.executable} -c 'import os; print(os.isatty(1), os.get_terminal_size().columns, \"<&>\")'"
    command, said = script.of_command(words)
    assert (command.prompt, command.text, said.text) == ("$ ", words, f"True {script.COLUMNS} <&>")
    assert 0 < said.at_s - command.at_s <= command.took_s
    assert shown(script.picture([command, said])) == [f"$ {words}", f"True {script.COLUMNS} <&>"]


def test_a_program_that_fails_makes_no_picture(script):
    with pytest.raises(SystemExit, match="wrong"):
        script.of_command(f"{sys.executable} -c 'raise SystemExit(\"wrong\")'")


def test_lines_are_typed_to_an_interpreter_and_a_block_is_ended(script):
    lines = script.of_python(["import os", "if os.isatty(0):", "    print(6 * 7)"])
    assert [line.prompt + line.text for line in lines] == [
        "$ python3",
        ">>> import os",
        ">>> if os.isatty(0):",
        "...     print(6 * 7)",
        "... ",
        "42",
    ]
    assert lines[-2].took_s > 0
    assert lines[-3].took_s == 0
