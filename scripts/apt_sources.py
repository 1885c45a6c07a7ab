"""This machine's apt sources, for another release of Debian: the same mirrors, other suites. Reads, prints.

    apt_sources.py RELEASE           the sources, as deb822
    apt_sources.py --name RELEASE    how a person knows the release

Sources of others than Debian are left out: what they call their suites is not known here.
"""

from __future__ import annotations

import glob
import os
import re
import sys

#: as Debian calls them, with how a person knows them
RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13", "sid": "Debian unstable"}
#: unstable has neither updates nor security support of its own
_ONE_SUITE = {"sid"}
_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")
#: options of a one-line source whose deb822 field is not the same word
_FIELDS = {"arch": "Architectures"}


def main() -> int:
    *option, release = sys.argv[1:]
    if release not in RELEASES:
        print(f"unknown release: {release} (one of: {', '.join(RELEASES)})", file=sys.stderr)
        return 2
    if option == ["--name"]:
        print(f"{RELEASES[release]} ({release})")
        return 0
    own = codename("/etc/os-release")
    stanzas: list[str] = []
    for path in ("/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*.*"))):
        if path.endswith((".list", ".sources")) and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                convert = stanzas_of_list if path.endswith(".list") else stanzas_of_sources
                stanzas += convert(file.read(), own, release)
    if not stanzas:
        print(f"no source of {own} below /etc/apt", file=sys.stderr)
        return 1
    print("\n\n".join(stanzas))
    return 0


def codename(path: str) -> str:
    """VERSION_CODENAME of os-release(5), empty where there is none."""
    with open(path, encoding="utf-8") as file:
        values = dict(line.strip().split("=", 1) for line in file if "=" in line)
    return values.get("VERSION_CODENAME", "").strip('"')


def suites(named: list[str], own: str, release: str) -> list[str]:
    """The suites of `release` that stand where those of `own` do: bookworm-updates becomes trixie-updates."""
    ours = [suite for suite in named if suite == own or suite.startswith(f"{own}-")]
    if release in _ONE_SUITE:
        ours = [suite for suite in ours if suite == own]
    return [release + suite.removeprefix(own) for suite in ours]


def stanzas_of_sources(text: str, own: str, release: str) -> list[str]:
    """A deb822 file, sources.list(5): every stanza that has suites in the other release."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        fields = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith(" "))
        there = suites(fields.get("Suites", "").split(), own, release)
        if "deb" in fields.get("Types", "").split() and there:
            changed = {"Types": "deb", "Suites": " ".join(there)}
            kept = [line for line in lines if line.split(":", 1)[0] not in changed]
            found.append("\n".join([*(f"{key}: {value}" for key, value in changed.items()), *kept]))
    return found


def stanzas_of_list(text: str, own: str, release: str) -> list[str]:
    """A file of one source a line, as deb822."""
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line.split("#", 1)[0].strip())
        there = suites([match["suite"]], own, release) if match else []
        if match and there:
            rows = [("Suites", there[0]), ("URIs", match["uri"]), ("Components", match["components"])]
            for option in (match["options"] or "").split():
                key, _, value = option.partition("=")
                rows.append((_FIELDS.get(key, key.title()), value.replace(",", " ")))
            found.append("\n".join(f"{key}: {value}" for key, value in [("Types", "deb"), *rows]))
    return found


if __name__ == "__main__":
    sys.exit(main())
