"""The config.json loader: every refusal names the JSON path, what was expected and what was found."""

from __future__ import annotations

import copy
import json

import pytest

from bufferzone import oci
from bufferzone.cli.oci.spec import default_spec
from bufferzone.errors import SpecError
from bufferzone.oci.rules import check_resources


@pytest.fixture
def bundle(tmp_path):
    """Write a config.json, from a dict, text or bytes, beside a rootfs; returns the bundle."""
    (tmp_path / "rootfs").mkdir()

    def write(content):
        if isinstance(content, dict):
            content = json.dumps(content)
        if isinstance(content, str):
            content = content.encode()
        (tmp_path / "config.json").write_bytes(content)
        return str(tmp_path)

    return write


def changed(path, value):
    """The default spec with one value replaced; path like `process.args.0`."""
    spec = copy.deepcopy(default_spec(rootless=False))
    target = spec
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[int(last) if isinstance(target, list) else last] = value
    return spec


def test_the_default_spec_loads_and_tells_its_properties(bundle, tmp_path):
    spec = oci.load(bundle(default_spec(rootless=False)))
    assert spec.rootfs == f"{tmp_path}/rootfs"
    assert (spec.terminal, spec.root_read_only, spec.hostname) == (True, True, "bufferzone")
    assert spec.namespace("network") == {"type": "network"}
    assert spec.namespace("user") is None
    assert spec.mounts[0]["destination"] == "/proc"
    assert spec.hooks("poststop") == []
    assert oci.load(bundle(default_spec(rootless=True))).namespace("user") == {"type": "user"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", 1, "ociVersion: expected a string, got number"),
        ("ociVersion", "2.0.0", "ociVersion: unknown version 2.0.0"),
        ("ociVersion", "one", "ociVersion: expected a version like 1.2.0, got 'one'"),
        ("ociVersion", "", "ociVersion: expected a version like 1.2.0, got ''"),
        ("root", {}, "root.path: is missing"),
        (
            "linux.resources",
            {"cpu": {"quota": 999}},
            "linux.resources.cpu.quota: must be at least 1000, got 999",
        ),
        (
            "linux.resources",
            {"memory": {"limit": 4096}},
            "linux.resources.memory.limit: must be at least 524288",
        ),
        ("linux.resources", {"cpu": {"period": 999}}, "linux.resources.cpu.period: must be 1000 to 1000000"),
        (
            "linux.resources",
            {"cpu": {"period": 1000001}},
            "linux.resources.cpu.period: must be 1000 to 1000000",
        ),
        ("root.path", "nowhere", "root.path: no such directory: {bundle}/nowhere"),
        ("root.path", "config.json", "root.path: not a directory: {bundle}/config.json"),
        ("root.path", "a\0b", "root.path: contains a NUL character"),
        ("root.readonly", "yes", "root.readonly: expected true or false, got string"),
        ("process.args", [], "process.args: must not be empty"),
        ("process.args", "sh", "process.args: expected an array, got string"),
        ("process.args.0", 5, "process.args[0]: expected a string, got number"),
        ("process.args.0", "a\0", "process.args[0]: contains a NUL character"),
        ("process.cwd", "tmp", "process.cwd: expected an absolute path, got 'tmp'"),
        ("process.env.0", {}, "process.env[0]: expected a string, got object"),
        ("process.user.uid", -1, "process.user.uid: expected 0 to 4294967294, got -1"),
        ("process.user.uid", 1.5, "process.user.uid: expected a whole number, got 1.5"),
        ("process.user.uid", True, "process.user.uid: expected a whole number, got boolean"),
        (
            "process.user.additionalGids",
            [1, "x"],
            "process.user.additionalGids[1]: expected a whole number, got string",
        ),
        ("process.rlimits.0.soft", 4096, "process.rlimits[0]: soft limit 4096 exceeds the hard limit 1024"),
        ("process.rlimits.0.type", "RLIMIT_X", "process.rlimits[0].type: unknown: 'RLIMIT_X'"),
        (
            "process.capabilities.bounding",
            "all",
            "process.capabilities.bounding: expected an array, got string",
        ),
        ("mounts.1", [], "mounts[1]: expected an object, got array"),
        ("mounts.1.destination", "", "mounts[1].destination: must not be empty"),
        ("mounts.1.options.2", 7, "mounts[1].options[2]: expected a string, got number"),
        ("mounts.1.source", "a\0", "mounts[1].source: contains a NUL character"),
        ("hooks.prestart", [{"path": "x"}], "hooks.prestart[0].path: expected an absolute path, got 'x'"),
        (
            "hooks.poststop",
            [{"path": "/x", "timeout": 0}],
            "hooks.poststop[0].timeout: must be greater than zero",
        ),
        ("linux.namespaces.1.type", "pid", "linux.namespaces[1].type: appears twice: pid"),
        ("linux.namespaces.1.type", "nets", "linux.namespaces[1].type: unknown: 'nets'"),
        ("linux.namespaces.1.path", "ns", "linux.namespaces[1].path: expected an absolute path, got 'ns'"),
        ("linux.maskedPaths.0", "proc", "linux.maskedPaths[0]: expected an absolute path, got 'proc'"),
        ("linux.rootfsPropagation", "up", "linux.rootfsPropagation: unknown: 'up'"),
        (
            "linux.resources.memory",
            {"limit": "1g"},
            "linux.resources.memory.limit: expected a whole number, got string",
        ),
        ("linux.resources.unified", {"a": 1}, "linux.resources.unified.a: expected a string, got number"),
        ("linux.seccomp", {}, "linux.seccomp.defaultAction: is missing"),
        (
            "linux.seccomp",
            {"defaultAction": "x", "syscalls": 1},
            "linux.seccomp.syscalls: expected an array, got number",
        ),
        (
            "linux.devices",
            [{"path": "x", "type": "c"}],
            "linux.devices[0].path: expected an absolute path, got 'x'",
        ),
        (
            "linux.devices",
            [{"path": "/x", "type": "z"}],
            "linux.devices[0].type: expected b, c, u or p, got 'z'",
        ),
        (
            "linux.devices",
            [{"path": "/x", "type": "c", "major": 4096}],
            "linux.devices[0].major: expected 0 to 4095, got 4096",
        ),
        (
            "linux.devices",
            [{"path": "/x", "type": "b", "minor": -1}],
            "linux.devices[0].minor: expected 0 to 1048575, got -1",
        ),
        ("linux.maskedPaths.0", "x" * 5000, "linux.maskedPaths[0]: expected an absolute path, got 'xxxx"),
        ("linux.personality", {"domain": "BSD"}, "linux.personality.domain: unknown: 'BSD'"),
        ("linux.personality", {"flags": ["x"]}, "linux.personality.flags: none is known"),
        ("hostname", "h" * 65, "hostname: longer than 64 bytes"),
        ("domainname", "\u00fc" * 33, "domainname: longer than 64 bytes"),
        ("process.user.uid", (1 << 32) - 1, "process.user.uid: expected 0 to 4294967294, got 4294967295"),
        ("process.user.additionalGids", [-1], "process.user.additionalGids[0]: expected 0 to 4294967294"),
        ("annotations", {"bufferzone.what": "1"}, "annotations.bufferzone.what: unknown annotation"),
        ("annotations", {"a": 1}, "annotations.a: expected a string, got number"),
        ("vm", {"hwConfig": {"vcpus": "2"}}, "vm.hwConfig.vcpus: expected a whole number, got string"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_path(bundle, path, value, message):
    where = bundle(changed(path, value))
    with pytest.raises(SpecError) as caught:
        oci.load(where)
    assert caught.value.message.startswith("config.json: " + message.format(bundle=where))
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.json: line 1 column 1: expecting value"),
        ('{\n  "a": }', "config.json: line 2 column 8: expecting value"),
        ('{"a": 1} x', "config.json: line 1 column 10: extra data"),
        (b'{"a": "\xff"}', "config.json: not UTF-8 at byte 7"),
        ("[]", "config.json: expected an object, got array"),
        ('{"a": NaN}', "config.json: NaN is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "config.json: number too long"),
        ("[" * 100_000, "config.json: nested too deeply"),
        ('{"a":' * 80 + "{}" + "}" * 80, "config.json: nested deeper than 64 levels"),
        ('{"ociVersion": "1.0.0"}', "config.json: root.path: is missing"),
        ("{}", "config.json: ociVersion: is missing"),
        (r'{"a": ["\ud800"]}', "config.json: a string has half of a surrogate pair"),
        (r'{"\uDFFF": 1}', "config.json: a string has half of a surrogate pair"),
    ],
    ids=range(13),
)
def test_what_is_not_a_config_is_refused_with_its_place(bundle, content, message):
    with pytest.raises(SpecError) as caught:
        oci.load(bundle(content))
    assert caught.value.message == message


def test_a_missing_file_and_a_huge_one_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SpecError, match=r"config\.json: no such file"):
        oci.load(str(tmp_path))
    monkeypatch.setattr(oci, "MAX_SIZE", 1 << 20)
    (tmp_path / "config.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(SpecError, match="larger than 1 MiB"):
        oci.load(str(tmp_path))


def test_another_platforms_container_is_refused_but_a_foreign_section_is_not(bundle):
    spec = default_spec(rootless=False)
    spec["windows"] = {"layerFolders": []}
    oci.load(bundle(spec))
    del spec["linux"]
    with pytest.raises(SpecError, match="windows: this container is made for another platform"):
        oci.load(bundle(spec))


def test_nulls_are_absent_and_unknown_keys_are_kept(bundle):
    spec = changed("process.rlimits", None)
    spec["hooks"], spec["x-tool"] = None, {"deep": [None]}
    spec["process"]["x"] = 1
    raw = oci.load(bundle(spec)).raw
    assert "rlimits" not in raw["process"]
    assert "hooks" not in raw
    assert (raw["x-tool"], raw["process"]["x"]) == ({"deep": [None]}, 1)


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.3.0", "1.2.0+dev", "1.0.0-rc5"])
def test_every_version_1_is_understood(bundle, version):
    assert oci.load(bundle(changed("ociVersion", version))).raw["ociVersion"] == version


def test_a_relative_mount_destination_counts_from_the_root_as_runc_has_it(bundle):
    assert oci.load(bundle(changed("mounts.1.destination", "dev"))).mounts[1]["destination"] == "/dev"


def test_a_key_that_is_there_twice_is_tolerated_as_go_does(bundle):
    text = json.dumps(default_spec(rootless=False))
    text = text.replace('"hostname": "bufferzone"', '"hostname": "a", "hostname": "b"')
    assert oci.load(bundle(text)).hostname == "b"


def test_a_whole_surrogate_pair_is_one_character(bundle):
    text = json.dumps(changed("hostname", "\U0001f600"))
    assert r"\ud83d\ude00" in text
    assert oci.load(bundle(text)).hostname == "\U0001f600"


def test_limits_of_64_bits_are_numbers(bundle):
    rlimits = [{"type": "RLIMIT_NPROC", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1}]
    assert oci.load(bundle(changed("process.rlimits", rlimits))).process["rlimits"] == rlimits


def test_resources_alone_are_checked_in_the_same_way():
    assert check_resources({"memory": {"limit": 5}}) == {"memory": {"limit": 5}}
    with pytest.raises(SpecError, match=r"resources\.cpu\.shares: expected a whole number, got string"):
        check_resources({"cpu": {"shares": "x"}})
