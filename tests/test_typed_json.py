"""JSON as Python's annotations want it: what is read, and what is refused by the name of its field."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from jaxreflow.support.typed_json import from_json


@dataclasses.dataclass(frozen=True)
class Inner:
    size: tuple[int, int] | Literal["none"] | None = None
    rates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = dataclasses.field(default_factory=Inner)
    names: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    other: dict[str, Any] = dataclasses.field(default_factory=dict)
    on: bool = False
    kind: Literal["a", "b"] = "a"
    rate: float | None = None


def test_values_become_what_the_annotations_say():
    document = {
        "name": "x",
        "inner": {"size": [1, 2], "rates": [1, 2.5]},
        "names": {"first": {"size": "none"}},
        "other": {"any": [None]},
        "rate": 3,
    }
    read = from_json(Outer, document)
    assert read == Outer("x", Inner((1, 2), (1.0, 2.5)), {"first": Inner("none")}, {"any": [None]}, rate=3.0)
    assert [type(value) for value in (*read.inner.rates, read.rate)] == [float] * 3
    assert from_json(Outer, {"name": "x", "rate": None}) == Outer("x")


def test_rules_for_numbers_that_are_not_finite():
    assert from_json(float, math.inf) == math.inf
    assert math.isnan(from_json(float, None, floats="null is nan"))
    for value in (math.inf, math.nan, 10**400):
        with pytest.raises(TypeError, match="`rate` must be a finite number, found"):
            from_json(float, value, "rate", floats="finite")
    with pytest.raises(TypeError, match="must be a number"):
        from_json(float, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "`name` must be text, found 3"),
        ({"on": 1}, "`on` must be true or false, found 1"),
        ({"kind": "c"}, "`kind` must be 'a' or 'b', found 'c'"),
        ({"rate": True}, "`rate` must be a number, found True"),
        ({"inner": []}, r"`inner` must be an object, found \[\]"),
        ({"inner": {"rates": [1, "x"]}}, r"`inner\.rates\.1` must be a number, found 'x'"),
        ({"inner": {"size": [1]}}, r"`inner\.size` must be a list of 2 or 'none' or null, found \[1\]"),
        ({"names": {"first": {"colour": 1}}}, r"`names\.first` must have fields of `Inner` only, found 'colour'"),
    ],
)
def test_other_values_are_refused_by_name(change, message):
    with pytest.raises(TypeError, match=message):
        from_json(Outer, {"name": "x", **change})


def test_a_missing_field_is_named():
    with pytest.raises(TypeError, match="the document must have the field 'name', found on"):
        from_json(Outer, {"on": True})
