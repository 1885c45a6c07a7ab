"""Settings files and what a bundle may change about them."""

from __future__ import annotations

import pytest

from bufferzone import config, oci, setting, settings_file
from bufferzone.errors import HostError, SpecError
from bufferzone.oci import cri, overrides


def loaded(tmp_path, *texts):
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        paths.append(str(path))
    return config.load(paths)


def test_without_files_the_table_holds():
    settings = config.load([])
    for row in config.TABLE:
        if row.key != "image_store":
            assert getattr(settings, row.name) == row.default
    assert settings.image_store.startswith("/")


def test_every_row_has_a_typed_attribute_and_a_default_that_fits():
    assert set(config.Settings.__annotations__) == {row.name for row in config.TABLE}
    faults = [row.key for row in config.TABLE if setting.fault(row, row.default)]
    assert faults == ["vcpus"]  # 0: by the container's limits, which is said by leaving it out


def test_later_files_win(tmp_path):
    settings = loaded(tmp_path, 'vcpus = 2\nkvm = "require"', "vcpus = 3")
    assert (settings.vcpus, settings.kvm) == (3, "require")


def test_a_key_with_a_dot_is_one_of_a_table(tmp_path):
    settings = loaded(tmp_path, "[pool]\nsize = 2\nidle_s = 5", "pool.size = 3", "[pool]")
    assert (settings.pool_size, settings.pool_idle_s) == (3, 5)


def test_settings_do_not_share_their_lists():
    config.load([]).allow_annotations.append("kernel")
    assert config.load([]).allow_annotations == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vcpu = 2", "vcpu: unknown setting"),
        ("[pool]\ndepth = 2", "pool.depth: unknown setting"),
        ("[lake]", "lake: unknown setting"),
        ("pool = 2", "pool: unknown setting"),
        ("pool.size = 65", "pool.size: must be 0 to 64, got 65"),
        ("vcpus = { a = 1 }", "vcpus: expected a whole number, got {'a': 1}"),
        ('vcpus = "2"', "vcpus: expected a whole number, got '2'"),
        ("vcpus = true", "vcpus: expected a whole number, got True"),
        ("vcpus = 0", "vcpus: must be 1 to 64, got 0"),
        ("memory_mib = 3", "memory_mib: must be 128 to 1048576, got 3"),
        ('kvm = "maybe"', "kvm: must be one of allow, warn, require, got 'maybe'"),
        ('kernel = "vmlinux"', "kernel: expected an absolute path, got 'vmlinux'"),
        ("allow_annotations = [1]", "allow_annotations: expected a list of strings"),
        ('kernel = "/a\\u0000b"', "kernel: contains a NUL byte"),
        ("vcpus = nine", "Invalid value (at line 1, column 9)"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_file_and_key(tmp_path, text, message):
    with pytest.raises(settings_file.ConfigError) as caught:
        loaded(tmp_path, text)
    assert caught.value.message == f"{tmp_path}/0.toml: {message}"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(HostError, match="No such file"):
        config.load([str(tmp_path / "none.toml")])


@pytest.mark.parametrize("name", ["config.toml", "config.d"])
def test_settings_that_may_be_there_and_cannot_be_looked_for_are_an_error(tmp_path, monkeypatch, name):
    """They may be stricter than the defaults."""
    monkeypatch.setattr(config, "DIRECTORY", str(tmp_path))
    assert config.load().vcpus == 0
    (tmp_path / name).symlink_to(name)
    with pytest.raises(HostError, match=f"{name}: Too many levels of symbolic links"):
        config.load()


def test_annotations_change_what_they_may():
    wanted = {
        "bufferzone.vcpus": "2",
        "bufferzone.memory": "1GiB",
        "bufferzone.kvm": "require",
        "io.other": "x",
    }
    settings = overrides.apply_annotations(config.load([]), wanted)
    assert (settings.vcpus, settings.memory_mib, settings.kvm) == (2, 1024, "require")


@pytest.mark.parametrize(
    ("text", "mib"), [("512", 512), ("512 MiB", 512), ("512m", 512), ("2g", 2048), ("1 GB", 1024)]
)
def test_memory_is_a_number_of_mib_or_has_a_unit(text, mib):
    assert overrides.apply_annotations(config.load([]), {"bufferzone.memory": text}).memory_mib == mib


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("memory", "3 MiB", "memory must be 128 MiB to 1048576 MiB, got '3 MiB'"),
        ("memory", "much", "expected a size like 512 or 1GiB, got 'much'"),
        ("memory", "-1", "expected a size like 512 or 1GiB, got '-1'"),
        ("memory", "9" * 40, "expected a size like 512 or 1GiB"),
        ("memory", "٣", "expected a size like 512 or 1GiB"),
        ("vcpus", "two", "expected a whole number, got 'two'"),
        ("vcpus", "65", "must be 1 to 64, got 65"),
        ("kvm", "never", "must be one of allow, warn, require, got 'never'"),
        ("templates", "yes", "expected true or false, got 'yes'"),
    ],
)
def test_a_bad_annotation_is_named_with_what_was_expected(name, text, message):
    with pytest.raises(SpecError) as caught:
        overrides.parse_annotations({f"bufferzone.{name}": text})
    assert caught.value.message.startswith(f"config.json: annotations.bufferzone.{name}: {message}")


def test_an_unknown_annotation_of_ours_is_an_error_that_lists_the_known_ones():
    with pytest.raises(SpecError, match=r"annotations\.bufferzone\.memroy: unknown annotation") as caught:
        overrides.parse_annotations({"bufferzone.memroy": "512"})
    assert "bufferzone.memory" in caught.value.hint


def test_an_annotation_can_make_the_kvm_policy_stricter_but_not_weaker():
    strict = config.load([]).with_values(kvm="require")
    with pytest.raises(SpecError, match="weaker than this host's policy: require"):
        overrides.apply_annotations(strict, {"bufferzone.kvm": "warn"})
    with pytest.raises(SpecError, match="tcg is refused where kvm is required"):
        overrides.apply_annotations(strict, {"bufferzone.accelerator": "tcg"})


def test_no_annotation_takes_the_wall_away_and_another_vmm_is_one_of_those_that_are_listed() -> None:
    with pytest.raises(SpecError, match="not allowed on this host"):
        overrides.apply_annotations(config.load([]), {"bufferzone.vmm": "firecracker"})
    consenting = config.load([]).with_values(allow_annotations=["vmm"])
    assert overrides.apply_annotations(consenting, {"bufferzone.vmm": "firecracker"}).vmm == "firecracker"
    with pytest.raises(SpecError, match="host is no wall"):
        overrides.apply_annotations(consenting, {"bufferzone.vmm": "host"})


def test_what_any_image_may_set_is_harmless_or_knows_what_is_weaker():
    harmless = {"vcpus", "memory_mib"}  # bounded by annotation_vcpus and annotation_memory_mib
    harmless |= {"templates", "rootfs"}  # how it starts, and where its files lie: the wall is the same
    unchecked = {row.key for row in config.TABLE if row.open and row.weaker is None}
    assert unchecked == harmless
    assert all(row.open for row in config.TABLE if row.by_request)


def test_an_annotation_does_not_talk_the_host_out_of_its_hardware():
    with pytest.raises(SpecError, match="tcg is weaker than this host's: auto"):
        overrides.apply_annotations(config.load([]), {"bufferzone.accelerator": "tcg"})
    consenting = config.load([]).with_values(allow_annotations=["accelerator"])
    assert overrides.apply_annotations(consenting, {"bufferzone.accelerator": "tcg"}).accelerator == "tcg"
    assert (
        overrides.apply_annotations(config.load([]), {"bufferzone.accelerator": "kvm"}).accelerator == "kvm"
    )


@pytest.mark.parametrize("key", ["disk_kib_per_s", "disk_ops_per_s", "network_kib_per_s"])
def test_an_annotation_lowers_a_limit_and_neither_raises_it_nor_takes_it_away(key):
    def asked(host, text):
        settings = config.load([]).with_values(**{key: host})
        return getattr(overrides.apply_annotations(settings, {f"bufferzone.{key}": text}), key)

    assert [asked(100, "100"), asked(100, "1"), asked(0, "100"), asked(0, "0")] == [100, 1, 100, 0]
    for text in ("101", "0"):
        with pytest.raises(SpecError, match=f"annotations.bufferzone.{key}: this host's limit is 100"):
            asked(100, text)


def test_a_bundle_cannot_ask_for_more_than_the_machine_has():
    with pytest.raises(SpecError, match="memory: this host has"):
        overrides.apply_annotations(config.load([]), {"bufferzone.memory": "1048576"})
    with pytest.raises(SpecError, match="memory: this host has"):
        overrides.apply_vm(config.load([]), {"hwConfig": {"memory": 1 << 40}})


def test_an_annotation_makes_a_vm_no_larger_than_the_operator_allows(monkeypatch):
    monkeypatch.setattr(overrides, "_machine", lambda: (8, 8192))
    bounded = config.load([]).with_values(annotation_memory_mib=1024, annotation_vcpus=2)
    assert overrides.apply_annotations(bounded, {"bufferzone.memory": "1GiB"}).memory_mib == 1024
    for name, text, where in (("memory", "1025", "memory: at most 1024"), ("vcpus", "3", "vcpus: at most 2")):
        with pytest.raises(SpecError, match=where) as caught:
            overrides.apply_annotations(bounded, {f"bufferzone.{name}": text})
        assert caught.value.hint.startswith(f"annotation_{name}")
    assert overrides.apply_annotations(config.load([]), {"bufferzone.memory": "4GiB"}).memory_mib == 4096
    with pytest.raises(SpecError, match="memory: at most 4096"):
        overrides.apply_annotations(config.load([]), {"bufferzone.memory": "4097"})
    usual = config.load([]).with_values(memory_mib=6000)  # what every container gets, a bundle may name
    assert overrides.apply_annotations(usual, {"bufferzone.memory": "6000"}).memory_mib == 6000


@pytest.mark.parametrize(
    ("path", "containerd", "believed"),
    [
        ("", False, False),
        ("", True, True),
        ("/libpod_parent/libpod-abc", False, False),
        ("machine.slice:libpod:abc", False, False),
        ("kubepods-pod1.slice:crio:abc", False, True),
        ("/kubepods/pod1/crio-abc", False, True),
    ],
)
def test_what_annotations_say_of_a_pod_counts_from_who_makes_pods(path, containerd, believed):
    notes = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri-o.SandboxID": "x", "a": "b"}
    raw = {"annotations": notes, "linux": {"cgroupsPath": path}}
    pod = oci.Spec(raw, "/b", containerd=containerd).pod
    assert pod == ({key: notes[key] for key in notes if key != "a"} if believed else {})
    assert cri.is_pod(pod) is believed


def test_a_kernel_of_the_bundles_choice_needs_the_hosts_consent():
    wanted = {"bufferzone.kernel": "/boot/vmlinux"}
    with pytest.raises(SpecError, match="not allowed on this host") as caught:
        overrides.apply_annotations(config.load([]), wanted)
    assert 'allow_annotations = ["kernel"]' in caught.value.hint
    consenting = config.load([]).with_values(allow_annotations=["kernel"])
    assert overrides.apply_annotations(consenting, wanted).kernel == "/boot/vmlinux"


def test_the_standard_vm_section_sets_the_size_and_is_bound_by_the_same_rules():
    vm = {"hwConfig": {"vcpus": 2, "memory": 1 << 30}}
    settings = overrides.apply_vm(config.load([]), vm)
    assert (settings.vcpus, settings.memory_mib) == (2, 1024)
    with pytest.raises(SpecError, match="memory_mib: must be 128"):
        overrides.apply_vm(config.load([]), {"hwConfig": {"memory": 3 << 20}})
    with pytest.raises(SpecError, match=r"vm\.kernel\.path: not allowed"):
        overrides.apply_vm(config.load([]), {"kernel": {"path": "/boot/vmlinux"}})


def test_a_setting_that_does_not_exist_cannot_be_set():
    with pytest.raises(TypeError, match="no setting 'nonsense'"):
        config.Settings(nonsense=1)
