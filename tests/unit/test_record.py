"""Frozen values with named fields."""

from __future__ import annotations

import copy
import pickle

import pytest

from bufferzone import record
from bufferzone.record import Record, field


class Point(Record):
    """Two numbers."""

    x: int
    y: int = 0


class Line(Record):
    """Records in a record."""

    ends: tuple[Point, ...]
    names: dict[str, str] = field(default_factory=dict)
    colour: str = field(default="red", metadata={"shown": True})

    @property
    def length(self) -> int:
        """The number of ends."""
        return len(self.ends)


def test_fields_are_given_by_name_and_have_defaults():
    assert (Point(x=1).x, Point(x=1).y, Point(x=1, y=2).y) == (1, 0, 2)
    assert Line(ends=(Point(x=1),)).length == 1


def test_a_missing_and_an_unknown_field_are_named():
    with pytest.raises(TypeError, match="Point: the field x is missing"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point has no field z"):
        Point(x=1, z=2)  # type: ignore[call-arg]


def test_a_record_cannot_be_changed_and_has_no_other_attributes():
    point = Point(x=1)
    with pytest.raises(AttributeError, match="frozen: x"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen: z"):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="frozen: x"):
        del point.x
    assert not hasattr(point, "__dict__")


def test_equal_is_what_has_one_class_and_equal_values():
    assert Point(x=1, y=2) == Point(x=1, y=2)
    assert hash(Point(x=1, y=2)) == hash(Point(x=1, y=2))
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != (1, 0)
    assert Point(x=1) != type("Point", (Record,), {"__annotations__": {"x": "int", "y": "int"}})(x=1, y=0)


def test_a_factory_makes_a_default_for_each_value():
    one, other = Line(ends=()), Line(ends=())
    one.names["a"] = "b"
    assert other.names == {}


def test_a_copy_differs_in_what_was_changed_alone():
    assert record.replace(Point(x=1, y=2), y=3) == Point(x=1, y=3)
    with pytest.raises(TypeError, match="Point has no field z"):
        record.replace(Point(x=1), z=3)


def test_a_pickled_and_a_copied_one_are_the_same():
    line = Line(ends=(Point(x=1), Point(x=2, y=3)), names={"a": "b"})
    assert pickle.loads(pickle.dumps(line)) == line
    assert copy.copy(line) == line
    assert copy.deepcopy(line) == line


def test_asdict_goes_into_records_tuples_and_dicts():
    value = Line(ends=(Point(x=1),), names={"a": "b"})
    assert record.asdict(value) == {"ends": ({"x": 1, "y": 0},), "names": {"a": "b"}, "colour": "red"}
    assert record.asdict(value)["names"] is not value.names


def test_fields_tell_names_in_order_and_what_was_said_of_them():
    assert [each.name for each in record.fields(Line)] == ["ends", "names", "colour"]
    assert record.fields(Line)[2].metadata == {"shown": True}


def test_a_record_of_a_record_has_the_fields_of_both():
    class Space(Point):
        """Three numbers."""

        z: int = 0

    assert (Space(x=1, z=3).y, Space(x=1, z=3).z) == (0, 3)


def test_its_text_says_every_field():
    assert repr(Point(x=1, y=2)) == "Point(x=1, y=2)"
