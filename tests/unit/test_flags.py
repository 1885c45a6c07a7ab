"""The flag parser: what Go's flag package and runc's callers write."""

from __future__ import annotations

import pytest

from bufferzone.cli.flags import Flag, help_text, ignored, parse
from bufferzone.cli.oci import VERBS
from bufferzone.client.signals import FORWARDED, number_of
from bufferzone.errors import UsageError

TABLE = (
    Flag("bundle b", "DIR", "where", default="."),
    Flag("detach d", "", "go"),
    Flag("tty t", "", "terminal"),
    Flag("env e", "K=V", "more", kind="list"),
    Flag("preserve-fds", "N", "count", kind="int", default=0),
    ignored("no-subreaper", "", "nothing"),
)


def parsed(*words, interspersed=True):
    return parse(TABLE, words, interspersed=interspersed)


@pytest.mark.parametrize(
    "words",
    [("--bundle=x",), ("--bundle", "x"), ("-b", "x"), ("-b=x",), ("-bundle", "x"), ("-bundle=x",)],
)
def test_every_way_to_write_a_value_means_the_same(words):
    options, rest = parsed(*words, "id")
    assert (options.bundle, rest) == ("x", ["id"])


def test_defaults_hold_until_a_flag_is_given():
    options, rest = parsed()
    assert (options.bundle, options.detach, options.env, options.preserve_fds) == (".", False, [], 0)
    assert (options.given, rest) == (set(), [])


def test_one_dash_is_enough_for_a_long_switch():
    options, rest = parsed("-no-subreaper", "id")
    assert (options.no_subreaper, rest) == (True, ["id"])


def test_short_switches_can_stand_together_and_the_last_may_take_a_value():
    options, rest = parsed("-dtb", "x", "id")
    assert (options.detach, options.tty, options.bundle, rest) == (True, True, "x", ["id"])


def test_a_switch_can_be_turned_off():
    options, _ = parsed("--detach", "--detach=false")
    assert options.detach is False


def test_a_list_keeps_the_order():
    options, _ = parsed("-e", "A=1", "--env=B=2=3")
    assert options.env == ["A=1", "B=2=3"]


def test_flags_may_follow_words_unless_the_words_are_a_command():
    options, rest = parsed("id", "-d")
    assert (options.detach, rest) == (True, ["id"])
    options, rest = parsed("id", "ls", "-d", interspersed=False)
    assert (options.detach, rest) == (False, ["id", "ls", "-d"])


def test_two_dashes_end_the_flags():
    options, rest = parsed("-d", "--", "-t", "x")
    assert (options.detach, options.tty, rest) == (True, False, ["-t", "x"])


def test_a_dash_alone_is_a_word():
    assert parsed("-")[1] == ["-"]


def test_help_wins_over_what_follows():
    options, _ = parsed("--help", "--nonsense")
    assert options.help is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bogus",), "flag provided but not defined: --bogus"),
        (("-x",), "flag provided but not defined: -x"),
        (("-dx",), "flag provided but not defined: -dx"),
        (("-bd",), "flag provided but not defined: -bd"),
        (("---detach",), "flag provided but not defined: ---detach"),
        (("--bundle",), "flag needs an argument: --bundle"),
        (("--preserve-fds", "many"), "invalid number many for flag: --preserve-fds"),
        (("--preserve-fds", "9" * 5000), "invalid number " + "9" * 77 + "... for flag: --preserve-fds"),
        (("--detach=maybe",), "invalid boolean value maybe for flag: --detach"),
        (("--b\nad",), r"flag provided but not defined: --b\nad"),
    ],
)
def test_a_bad_flag_is_one_clear_line(words, message):
    with pytest.raises(UsageError) as caught:
        parsed(*words)
    assert caught.value.line() == message


def test_help_is_the_table():
    text = help_text("prog verb", "does it", "[options] ID", "More\nlines", TABLE)
    assert "prog verb - does it" in text
    assert "--bundle, -b DIR" in text
    assert "(default: .)" in text
    assert text.index("WITHOUT EFFECT") < text.index("--no-subreaper")
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_table_without_two_flags_of_one_name(verb):
    module = __import__(f"bufferzone.cli.oci.{VERBS[verb][0]}", fromlist=["run"])
    names = [name for flag in module.FLAGS for name in flag.names]
    assert len(names) == len(set(names))
    assert module.WORDS[0] >= 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("KILL", 9),
        ("SIGKILL", 9),
        ("sigterm", 15),
        ("0", 0),
        ("9", 9),
        ("64", 64),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX", 64),
        ("RTMAX-14", 50),
        ("WINCH", 28),
        ("SIGIOT", 6),
    ],
)
def test_signals_have_names_and_numbers(text, number):
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["", "65", "-9", "SIG", "NO", "RTMIN-1", "RTMIN+31", "RTMAX+1", "1e3"])
def test_other_signals_are_refused(text):
    with pytest.raises(UsageError, match="unknown signal"):
        number_of(text)


def test_what_cannot_be_caught_or_is_for_job_control_is_not_forwarded():
    assert not {9, 19, 17, 18, 20, 21, 22, 11, 28} & set(FORWARDED)
    assert {1, 2, 3, 10, 12, 15, 34, 64} <= set(FORWARDED)
