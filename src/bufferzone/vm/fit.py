"""Whether a VM that is there is the one that is wanted: what differs between the two, as values. Pure.

Asked for a VM that waits in the pool, for one that a second container joins, and for a saved one. What has to
agree stands where a value is declared: the column `decides` of the settings' table, and `restored` of the
fields of `VmShape`.
"""

from __future__ import annotations

from bufferzone import config
from bufferzone.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: how two values have to agree: they are equal; there is at least what is wanted; there is at most that
SAME, ENOUGH, WITHIN = "same", "enough", "within"


class Difference(Record):
    """`name` is a setting's or a field's of `VmShape`; `there` what the VM has, `wanted` what it needs."""

    name: str
    there: object
    wanted: object

    def __str__(self) -> str:
        return f"its {self.name} is {_text(self.there)}, wanted is {_text(self.wanted)}"


def differences(there: object, wanted: object, rules: Mapping[str, str]) -> list[Difference]:
    """Where `there` is not what `wanted` needs: the attributes that `rules` names, each with its rule, in
    that order.
    """
    return [
        Difference(name=name, there=getattr(there, name), wanted=getattr(wanted, name))
        for name, rule in rules.items()
        if not _agree(rule, _rank(name, getattr(there, name)), _rank(name, getattr(wanted, name)))
    ]


def same(names: Iterable[str]) -> dict[str, str]:
    """Rules by which all these are equal."""
    return dict.fromkeys(names, SAME)


def _agree(rule: str, there: object, wanted: object) -> bool:
    if rule == SAME:
        return there == wanted
    if not isinstance(there, int) or not isinstance(wanted, int):
        raise TypeError(f"{rule} needs numbers or choices")
    return there >= wanted if rule == ENOUGH else there <= wanted


def _rank(name: str, value: object) -> object:
    """A choice by its place: where the order counts, the table has the weakest first."""
    row = config.ROWS.get(name)
    return row.choices.index(value) if row is not None and value in row.choices else value


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    return {"": "not set", "True": "true", "False": "false"}.get(str(value), str(value))
