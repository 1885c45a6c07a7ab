"""The grammar of egress rules, and who may narrow them."""

from __future__ import annotations

import re

import pytest

from bufferzone import config, egress, settings_file
from bufferzone.errors import SpecError
from bufferzone.oci import overrides

TABLE = [
    ("10.0.0.0/8", ("", 4, "10.0.0.0", 8, None)),
    ("192.0.2.7", ("", 4, "192.0.2.7", 32, None)),
    ("0.0.0.0/0", ("", 4, "0.0.0.0", 0, None)),
    ("tcp:192.0.2.7:443", ("tcp", 4, "192.0.2.7", 32, (443, 443))),
    ("tcp:198.51.100.0/24:8000-8100", ("tcp", 4, "198.51.100.0", 24, (8000, 8100))),
    ("tcp:198.51.100.0/24", ("tcp", 4, "198.51.100.0", 24, None)),
    ("udp:[fd00::/8]:53", ("udp", 6, "fd00::", 8, (53, 53))),
    ("icmp:[2001:db8::1]", ("icmp", 6, "2001:db8::1", 128, None)),
    ("[::/0]", ("", 6, "::", 0, None)),
    ("udp:0.0.0.0/0:1-65535", ("udp", 4, "0.0.0.0", 0, (1, 65535))),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_a_rule_is_read_as_it_is_written_and_shown_as_it_is_read(text, expected):
    rule = egress.parse(text)
    assert (rule.protocol, rule.version, rule.address, rule.bits, rule.ports) == expected
    assert str(rule) == text
    assert egress.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected an IPv4 address or network"),
        ("example.com", "expected an IPv4 address or network"),
        ("tcp:example.com:443", "expected an IPv4 address or network"),
        ("*", "expected an IPv4 address or network"),
        ("10.0.0", "expected an IPv4 address or network"),
        ("010.0.0.1", "expected an IPv4 address or network"),
        ("10.0.0.1\0", "expected an IPv4 address or network"),
        ("10.0.0.\u0661", "expected an IPv4 address or network"),
        ("10.0.0.0/", "the network's bits must be a number from 0 to 32"),
        ("10.0.0.0/33", "the network's bits must be a number from 0 to 32"),
        ("10.0.0.0/08", "the network's bits must be a number from 0 to 32"),
        ("10.0.0.0/255.0.0.0", "the network's bits must be a number from 0 to 32"),
        ("10.0.0.1/8", "has bits set beyond its network: use 10.0.0.0/8 or a longer prefix"),
        ("[fd00::1/8]", "has bits set beyond its network: use [fd00::/8] or a longer prefix"),
        ("[fd00::/129]", "the network's bits must be a number from 0 to 128"),
        ("fd00::/8", "an IPv6 address must be in brackets, as in [fd00::/8]"),
        ("fe80::1", "an IPv6 address must be in brackets, as in [fd00::/8]"),
        ("tcp:fd00::1:443", "an IPv6 address must be in brackets, as in [fd00::/8]"),
        ("[fd00::1", "the bracket is not closed"),
        ("[fd00::]/8", "expected : and a port after the bracket, with the network's bits inside it"),
        ("[fe80::1%eth0]", "expected an IPv6 address or network"),
        ("[10.0.0.1]", "expected an IPv6 address or network"),
        ("[::ffff:10.0.0.1]", "an IPv4-mapped address must be written as IPv4"),
        ("10.0.0.1:80", "a port is allowed only after tcp: or udp:"),
        ("icmp:10.0.0.1:8", "a port is allowed only after tcp: or udp:"),
        ("sctp:10.0.0.1:80", "the protocol must be one of tcp, udp, icmp"),
        ("TCP:10.0.0.1:80", "the protocol must be one of tcp, udp, icmp"),
        ("tcp:10.0.0.1:", "a port must be a number from 1 to 65535"),
        ("tcp:10.0.0.1:0", "a port must be a number from 1 to 65535"),
        ("tcp:10.0.0.1:65536", "a port must be a number from 1 to 65535"),
        ("tcp:10.0.0.1:+80", "a port must be a number from 1 to 65535"),
        ("tcp:10.0.0.1:https", "a port must be a number from 1 to 65535"),
        ("tcp:10.0.0.1:80-", "a port must be a number from 1 to 65535"),
        ("tcp:10.0.0.1:90-80", "the last port is below the first port"),
        ("tcp:[fd00::1]443", "expected : and a port after the bracket, with the network's bits inside it"),
        ("tcp:", "expected an IPv4 address or network"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason) + r"\Z"):
        egress.parse(text)


def test_none_is_a_policy_of_its_own_and_an_empty_list_is_no_policy():
    assert egress.policy(["none"]) == ()
    assert egress.policy([]) is None
    assert "cannot be combined" in egress.fault(["none", "10.0.0.0/8"])


def test_a_list_without_end_is_refused():
    assert egress.fault(["10.0.0.1"] * egress.MOST_RULES) == ""
    assert "the maximum is 256" in egress.fault(["10.0.0.1"] * (egress.MOST_RULES + 1))


@pytest.mark.parametrize(
    ("wide", "narrow", "inside"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.0.0.0/8", "tcp:10.1.2.3:80", True),
        ("10.1.0.0/16", "10.0.0.0/8", False),
        ("10.0.0.0/8", "11.0.0.0/8", False),
        ("tcp:10.0.0.0/8", "10.0.0.0/8", False),
        ("tcp:10.0.0.0/8", "udp:10.0.0.0/8", False),
        ("tcp:10.0.0.0/8", "tcp:10.0.0.1:1-65535", True),
        ("tcp:10.0.0.0/8:1-65535", "tcp:10.0.0.1", False),
        ("tcp:10.0.0.0/8:80-90", "tcp:10.0.0.1:85-90", True),
        ("tcp:10.0.0.0/8:80-90", "tcp:10.0.0.1:85-91", False),
        ("0.0.0.0/0", "[::/0]", False),
        ("[::/0]", "10.0.0.1", False),
        ("[fd00::/8]", "udp:[fd00::1]:53", True),
        ("0.0.0.0/0", "0.0.0.0/0", True),
    ],
)
def test_a_rule_contains_what_it_allows_alone(wide, narrow, inside):
    assert egress.parse(wide).contains(egress.parse(narrow)) is inside


def test_a_settings_file_with_a_rule_that_does_not_parse_is_named_with_key_and_rule(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('egress = ["10.0.0.0/8", "tcp:10.0.0.1:http"]')
    with pytest.raises(settings_file.ConfigError) as caught:
        config.load([str(path)])
    reason = "'tcp:10.0.0.1:http': a port must be a number from 1 to 65535"
    assert caught.value.message == f"{path}: egress: {reason}"


@pytest.mark.parametrize(
    "text", ["tcp:10.0.0.1:80 udp:[fd00::1]:53", "tcp:10.0.0.1:80,udp:[fd00::1]:53", " none, "]
)
def test_an_annotation_sets_a_policy_where_the_host_has_none(text):
    settings = overrides.apply_annotations(config.load([]), {"bufferzone.egress": text})
    assert settings.egress == text.replace(",", " ").split()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.0/8 nonsense", "'nonsense': expected an IPv4 address or network"),
        ("none 10.0.0.1", "'none': cannot be combined with other rules"),
        (" ,", "empty"),
        ("", "empty"),
    ],
)
def test_an_annotation_that_does_not_parse_is_named(text, reason):
    with pytest.raises(SpecError) as caught:
        overrides.parse_annotations({"bufferzone.egress": text})
    assert caught.value.message == f"config.json: annotations.bufferzone.egress: {reason}"


def narrowed(host, text):
    settings = config.load([]).with_values(egress=host)
    return overrides.apply_annotations(settings, {"bufferzone.egress": text}).egress


def test_an_annotation_may_only_name_what_lies_within_one_of_the_hosts_rules():
    host = ["tcp:10.0.0.0/8:443", "udp:10.0.0.2:53"]
    assert narrowed(host, "tcp:10.1.0.0/16:443") == ["tcp:10.1.0.0/16:443"]
    assert narrowed(host, "none") == ["none"]
    with pytest.raises(SpecError) as caught:
        narrowed(host, "tcp:10.1.0.0/16:443,tcp:10.0.0.0/8:80")
    assert caught.value.code == "annotation-refused"
    assert caught.value.message == (
        "config.json: annotations.bufferzone.egress: tcp:10.0.0.0/8:80 lies in none of this host's rules"
    )
    assert "tcp:10.0.0.0/8:443 udp:10.0.0.2:53" in caught.value.hint


def test_where_the_host_allows_nothing_an_annotation_adds_nothing():
    assert narrowed(["none"], "none") == ["none"]
    with pytest.raises(SpecError, match="lies in none"):
        narrowed(["none"], "10.0.0.1")


def test_rules_that_only_several_of_the_hosts_cover_together_are_refused():
    with pytest.raises(SpecError, match="lies in none"):
        narrowed(["10.0.0.0/9", "10.128.0.0/9"], "10.0.0.0/8")


def test_without_an_annotation_the_hosts_policy_holds():
    assert overrides.apply_annotations(config.load([]).with_values(egress=["none"]), {}).egress == ["none"]
