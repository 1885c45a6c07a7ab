#!/usr/bin/python3 -I
"""Prints docs/settings.md from the settings' table: scripts/settings_page.py >docs/settings.md"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src"))
from bufferzone import config
from bufferzone.setting import Setting

HEAD = """# Settings

This page is printed by `scripts/settings_page.py` from the table in `src/bufferzone/config.py`.

Settings are read from `/etc/bufferzone/config.toml`, then from `/etc/bufferzone/config.d/*.toml`. For users
other than root `~/.config/bufferzone/config.toml` comes last. Later files win. Unknown keys are errors. A key
with a dot is also the key of a table: `pool.size` is `size` below `[pool]`.

A bundle may set what has an annotation, sizes up to `annotation_vcpus` and `annotation_memory_mib`. An
annotation makes a VM larger, never the limit of its cgroup: the host's limits of a container come from its
caller alone. Annotations marked "on request" work only where `allow_annotations` names them. An annotation's
list is separated by spaces.

| key | values | default | meaning | annotation |
|---|---|---|---|---|
"""
TAIL = """
The `vm` section of config.json is read too: `hwConfig.vcpus` and `hwConfig.memory`, and on request kernel and
image.
"""
KINDS = {
    "int": "a number",
    "str": "text",
    "bool": "`true`, `false`",
    "path": "absolute path",
    "list": "list of texts",
}


def page() -> str:
    """The whole page."""
    return HEAD + "".join(row(setting) for setting in config.TABLE) + TAIL


def row(setting: Setting) -> str:
    """One line of the table."""
    cells = (f"`{setting.key}`", values(setting), default(setting), setting.help, annotation(setting))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def values(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.kind == "int":
        return f"{setting.minimum} to {setting.maximum}"
    return KINDS[setting.kind]


def default(setting: Setting) -> str:
    value = setting.default
    below = setting.kind == "int" and value < setting.minimum
    if below or value in ("", []):
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def annotation(setting: Setting) -> str:
    if not setting.annotation:
        return "none"
    return f"`{setting.annotation}`" + ("" if setting.open else ", on request")


if __name__ == "__main__":
    sys.stdout.write(page())
