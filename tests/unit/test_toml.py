"""Plain TOML read without tomllib: the same, or left to it."""

import subprocess
import tomllib

import pytest

from bufferzone import toml
from style.source import PACKAGE

PLAIN = """
# settings
size = 3   # with a remark
[pool]
size = 16
idle_s=0

[other-table]
on = true
off = false
name = "a # b = [c]"
empty = ""
list = [ "one", "two words" ]
none = []
"""
TRICKY = [
    "a.b = 1\n[a.c]\nd = 2",
    "a = 'literal'",
    'a = "esc\\n"',
    'a = """multi\nline"""',
    "a = [1, 2]",
    "a = 1_000",
    "a = -3",
    "a = 0x10",
    "a = 1.5",
    "a = 2026-01-01",
    "a = { b = 1 }",
    "[[a]]\nb = 1",
    '"quoted key" = 1',
    'a = ["x, y"]',
    'a = [\n "x",\n]',
    'a = ["x",]',
    'a = "x" # remark',
    "[ a ] # remark\nb = 1",
    "\ta = 1",
    "a = 1\r\nb = 2\r\n",
    'a = "täxt"',
    "a = 99999999999999999999",
]
WRONG = [
    "a",
    "a =",
    "= 1",
    "a = 1\na = 2",
    "[a]\n[a]",
    "a = 1\n[a]",
    "a = 01",
    "a = tru",
    "[a",
    "a = x",
    'a = "x',
    'a = "x" "y"',
    'a = "\x01"',
    "a = 1 b = 2",
    "[]",
    "a = ٣",
    "a = ,",
    'a = [,"x"]',
    'a = ["x" "y"]',
    "a b = 1",
    "ä = 1",
    "\r\r\n",
    'a = "x"\r\r\n',
]


@pytest.mark.parametrize("text", [PLAIN, "", *TRICKY])
def test_a_document_is_read_as_tomllib_reads_it(text):
    assert toml.parse(text.encode()) == tomllib.loads(text)


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_by_tomllib(text):
    with pytest.raises(tomllib.TOMLDecodeError):
        toml.parse(text.encode())


def test_bytes_that_are_no_text_are_an_error():
    with pytest.raises(UnicodeDecodeError):
        toml.parse(b"a = \xff")


def test_a_plain_document_does_not_import_tomllib():
    program = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from bufferzone import toml\n"
    program += f"toml.parse({PLAIN.encode()!r}); print('tomllib' in sys.modules)"
    done = subprocess.run(["/usr/bin/python3", "-ISc", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
