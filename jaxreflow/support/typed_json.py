"""Values of a JSON document as Python's annotations want them: frozen dataclasses, tuples, literals and plain values."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

Floats = Literal["finite", "any", "null is nan"]
"""What a float field takes: finite numbers only, also NaN and infinities, or those and null for NaN."""


def from_json(kind: Any, value: Any, name: str = "", *, floats: Floats = "any") -> Any:
    """`value` as the annotation `kind` says: lists as tuples, objects as dataclasses, whole numbers as floats.

    Raises:
        TypeError: names the field, below `name`, what was expected there, and what was found.
    """

    def within(kind: Any, value: Any, step: object) -> Any:
        return from_json(kind, value, f"{name}.{step}" if name else str(step), floats=floats)

    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        others = [each for each in args if each is not types.NoneType]
        if value is None and len(others) < len(args):
            return None
        if len(others) == 1:
            return from_json(others[0], value, name, floats=floats)
        for each in others:
            try:
                return from_json(each, value, name, floats=floats)
            except TypeError:
                pass
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        _check_names(kind, value, name)
        return kind(**{key: within(hints[key], each, key) for key, each in value.items()})  # type: ignore[operator]
    elif origin in (list, tuple) and isinstance(value, list):
        kinds = args[:1] * len(value) if origin is list or args[1:] == (...,) else args
        if len(kinds) == len(value):
            return origin(within(each, item, i) for i, (each, item) in enumerate(zip(kinds, value, strict=True)))
    elif origin in (dict, typing.get_origin(Mapping[str, Any])) and isinstance(value, dict):
        return {key: within(args[1], each, key) for key, each in value.items()}
    elif kind is float:
        if value is None and floats == "null is nan":
            return math.nan
        finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
        if finite or (type(value) is float and floats != "finite"):
            return float(value)
    elif kind is Any or (origin is Literal and value in args) or type(value) is kind:
        return value
    raise TypeError(f"`{name or 'document'}` must be {_words(kind, floats)}, found {value!r:.80}")


def _check_names(kind: Any, value: dict[str, Any], name: str) -> None:
    where, fields = f"`{name}`" if name else "the document", {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [key for key in value if key not in fields]:
        raise TypeError(f"{where} must have fields of `{kind.__name__}` only, found {unknown[0]!r}")
    needed = (
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    if missing := [key for key in needed if key not in value]:
        raise TypeError(f"{where} must have the field {missing[0]!r}, found {', '.join(value) or 'none'}")


def _words(kind: Any, floats: Floats) -> str:
    """An annotation as JSON's readers call it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(each, floats) for each in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (list, tuple):
        return f"a list of {len(args)}" if origin is tuple and args[1:] != (...,) else "a list"
    names = {int: "a whole number", bool: "true or false", str: "text", types.NoneType: "null"}
    if kind is float:
        return "a finite number" if floats == "finite" else "a number"
    return names.get(kind, "an object")
