"""Naming and fetching packages, with apt replaced by its own words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bufferzone.errors import HostError
from bufferzone.guestimage import apt, distro, python

SHA = "ab" * 32
ZLIB = f"'http://deb.example/zlib1g.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 SHA256:{SHA}\n"
SHOW = """Package: linux-image-cloud-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Description: Linux for x86-64 cloud (meta-package)
"""


SHOW_SPLIT = """Package: linux-image-7.2.13+deb14-cloud-amd64
Depends: dracut | linux-initramfs-tool, linux-base-7.2.13+deb14-cloud-amd64 (= 7.2.13-1), \
linux-binary-7.2.13+deb14-cloud-amd64 (= 7.2.13-1)
"""
SHOW_PYTHON = """Package: python3-minimal
Pre-Depends: python3.13-minimal (>= 3.13.5-1~)
Depends: dpkg (>= 1.13.20)
"""


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def run(argv: list[str], **_: object) -> str:
        return text

    monkeypatch.setattr(apt, "run", run)


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], **_: object) -> str:
        raise HostError("apt-get failed: E: no network", code="program-failed")

    monkeypatch.setattr(apt, "run", run)


def package(data: bytes) -> apt.Package:
    sha256 = hashlib.sha256(data).hexdigest()
    return apt.Package(name="tool", version="1:2", file="tool_1%3a2_amd64.deb", size=len(data), sha256=sha256)


def test_a_meta_package_names_the_kernel_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, SHOW)
    named = apt.one_needed_by("linux-image-cloud-amd64", r"linux-image-\d.*")
    assert named == "linux-image-6.1.0-56-cloud-amd64"
    with pytest.raises(HostError, match="linux-image-cloud-amd64 needs no dracut"):
        apt.one_needed_by("linux-image-cloud-amd64", "dracut")


def test_a_kernel_in_several_packages_is_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, SHOW_SPLIT)
    names = ["linux-image-7.2.13+deb14-cloud-amd64"]
    names += [f"linux-{part}-7.2.13+deb14-cloud-amd64" for part in ("base", "binary")]
    monkeypatch.setattr(apt, "one_needed_by", lambda *_: names[0])
    assert distro.Distro().kernel_packages() == names


def test_the_guest_gets_the_python_that_the_release_has(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, SHOW_PYTHON)
    assert python.packages() == ["python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib"]
    assert python.guest_path("/usr/bin/python3.13") == "/usr/bin/python3"
    assert python.guest_path("/usr/lib/python3.13/os.py") == "/usr/lib/python3.13/os.py"
    assert python.guest_path("/usr/lib/python3/dist-packages/os.py") == ""
    assert python.guest_path("/usr/lib/python3.13/turtle.py") == ""


def test_a_package_that_lies_in_the_working_directory_is_found_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def run(argv: list[str], cwd: str | None = None) -> str:
        seen.append([path.name for path in Path(cwd or ".").iterdir()])
        return ZLIB

    monkeypatch.setattr(apt, "run", run)
    apt.resolve(["zlib1g"])
    assert seen == [[]]


def test_a_package_is_pinned_with_version_file_size_and_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "Ign: noise\n" + ZLIB)
    assert apt.resolve(["zlib1g"]) == [
        apt.Package(
            name="zlib1g",
            version="1:1.2.13.dfsg-1",
            file="zlib1g_1%3a1.2.13.dfsg-1_amd64.deb",
            size=86684,
            sha256=SHA,
        )
    ]


def test_a_package_that_apt_does_not_offer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ZLIB)
    with pytest.raises(HostError, match="libffi8") as caught:
        apt.resolve(["zlib1g", "libffi8"])
    assert caught.value.line().endswith("(hint: run: apt-get update)")


@pytest.mark.parametrize("file", ["../../etc/passwd", "a/b_1_amd64.deb", "UPPER_1_amd64.deb"])
def test_a_file_name_with_a_path_is_not_taken_from_apt(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    answer(monkeypatch, ZLIB.replace("zlib1g_1%3a1.2.13.dfsg-1_amd64.deb", file))
    with pytest.raises(HostError, match="zlib1g"):
        apt.resolve(["zlib1g"])


def test_empty_lists_of_apt_point_at_apt_get_update(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    for ask in (lambda: apt.needed_by("linux-image-cloud-amd64", ".*"), lambda: apt.resolve(["zlib1g"])):
        with pytest.raises(HostError) as caught:
            ask()
        assert caught.value.code == "package-unknown"
        assert caught.value.hint == "run: apt-get update"


@pytest.mark.parametrize("release", ["ubuntu", "debian"])
def test_another_distribution_is_told_that_it_is_one(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """apt-get update is no help there."""
    found = {"ID": release, "PRETTY_NAME": "Ubuntu 24.04 LTS"}
    monkeypatch.setattr(distro.platform, "freedesktop_os_release", lambda: found)

    def unknown(*_: object, **__: object) -> str:
        raise HostError("apt-cache failed: E: No packages found", code="program-failed")

    monkeypatch.setattr(apt, "run", unknown)
    with pytest.raises(HostError) as caught:
        distro.Distro().kernel_packages()
    if release == "debian":
        assert caught.value.hint == "run: apt-get update"
    else:
        assert caught.value.line() == (
            "no guest image can be built on Ubuntu 24.04 LTS: it has no package linux-image-cloud-amd64 "
            "(hint: use Debian 12 (bookworm) or Debian 13 (trixie))"
        )


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(HostError, match="no-such-program is not installed") as caught:
        apt.pipe(["no-such-program"], b"", package="lz4")
    assert caught.value.code == "program-missing"
    assert caught.value.hint == "run: apt-get install lz4"


def test_a_failing_program_is_one_line_with_its_last_words() -> None:
    with pytest.raises(HostError, match=r"^cat failed: .*No such file") as caught:
        apt.run(["cat", "/does/not/exist"])
    assert "\n" not in caught.value.message


def test_programs_see_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/tmp/evil.so")
    assert sorted(apt.run(["env"]).split()) == ["LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


def test_nothing_is_downloaded_when_the_cache_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    (tmp_path / "tool_1%3a2_amd64.deb").write_bytes(b"content")
    apt.fetch([package(b"content")], str(tmp_path), print)
    with pytest.raises(HostError, match=r"download failed: .*no network") as caught:
        apt.fetch([package(b"CONTENT")], str(tmp_path), lambda line: None)
    assert caught.value.code == "download-failed"


def test_a_damaged_download_stays_out_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], cwd: str, **_: object) -> str:
        assert argv[-2:] == ["download", "tool=1:2"]
        (Path(cwd) / "tool_1%3a2_amd64.deb").write_bytes(b"c0ntent")
        return ""

    monkeypatch.setattr(apt, "run", run)
    with pytest.raises(HostError, match="download of tool is damaged"):
        apt.fetch([package(b"content")], str(tmp_path), lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_package_is_an_error_naming_it(tmp_path: Path) -> None:
    if not Path("/usr/bin/dpkg-deb").exists():
        pytest.skip("needs the program dpkg-deb")
    (tmp_path / "tool_1%3a2_amd64.deb").write_bytes(b"content")
    with pytest.raises(HostError, match=r"tool_1%3a2_amd64\.deb") as caught:
        list(apt.contents(package(b"content"), str(tmp_path)))
    assert caught.value.code == "package-damaged"
