"""Coverage-guided fuzzing of one decoder, for hours: not a test of the suite. Needs atheris, from PyPI.

    PYTHONPATH=src:tests build/venv/bin/python tests/security/fuzz.py decode_message -runs=1000000 CORPUS

Words after the target are libFuzzer's. A finding is an exception, a failed assertion, an input that takes
longer than -timeout=25 seconds, or -rss_limit_mb=512 of memory. What was run is in docs/attack-surface.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bufferzone"]):
    from security import fuzz_seeds, fuzz_targets


def main(words: list[str]) -> None:
    """Run one target, with seeds of its own where a directory is given."""
    name = words[1]
    target = fuzz_targets.TARGETS[name]
    for directory in (word for word in words[2:] if not word.startswith("-")):
        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(fuzz_seeds.SEEDS[name]):
            (place / f"seed{number}").write_bytes(seed)
    atheris.Setup([words[0], *words[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
