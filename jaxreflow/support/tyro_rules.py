"""How tyro reads and shows the fields of a command's dataclass, where that differs from its own way."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

_JSON_MAP = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda args: _parse_map(args[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
RenameMap = Annotated[dict[str, str], _JSON_MAP]


def _parse_map(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise ValueError("not an object of strings")
    except ValueError as error:
        raise ValueError(f'expected JSON like \'{{"from": "to"}}\', found {text!r} ({error})') from error
    return value


BOOLEANS = {"true": True, "false": False}
_NOTHING = ("none", "None", "null")


def make_registry(target: Any, sections: Mapping[str, Sequence[str]]) -> ConstructorRegistry:
    """tyro's rules for this package's types; fields of `target` that `sections` names stand in boxes of these titles, in order."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_boolean)
    registry.primitive_rule(_optional)
    asked: list[Any] = []

    @registry.struct_rule
    def dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
        """A dataclass by tyro's own rule; the fields of `target` in boxes."""
        if isinstance(info.default, _Box):
            return StructConstructorSpec(instantiate=dict, fields=info.default.fields)
        if asked or not dataclasses.is_dataclass(info.type):
            return None
        asked.append(info)  # tyro asks its rules in turn: the next answer is its own.
        spec = ConstructorRegistry.get_struct_spec(info)
        asked.clear()
        assert isinstance(spec, StructConstructorSpec)
        spec = dataclasses.replace(spec, fields=tuple(map(_shown, spec.fields)))
        return _boxed(spec, sections) if sections and info.type is target else spec

    return registry


def _boolean(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
    """`true` and `false`, where a boolean has a third state; elsewhere tyro makes `--flag` and `--no-flag`."""
    if info.type is not bool:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{true,false}",
        instance_from_str=lambda words: BOOLEANS[words[0].lower()],
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
        choices=("true", "false", "True", "False"),
    )


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A value or `none`, shown as the value alone: in help, `{None}|STR` says less than STR."""
    kinds = [kind for kind in typing.get_args(info.type) if kind is not types.NoneType]
    if info.type_origin not in (typing.Union, types.UnionType) or len(kinds) == len(typing.get_args(info.type)):
        return None
    one: Any = typing.Union[tuple(kinds)]  # noqa: UP007
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(one, info.markers))
    assert isinstance(inner, PrimitiveConstructorSpec)
    return dataclasses.replace(
        inner,
        nargs=(1, inner.nargs) if isinstance(inner.nargs, int) and inner.nargs != 1 else inner.nargs,
        instance_from_str=lambda words: (
            None if len(words) == 1 and words[0] in _NOTHING else inner.instance_from_str(words)
        ),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else inner.str_from_instance(value),
        choices=None if inner.choices is None else (*inner.choices, *_NOTHING),
    )


def _shown(field: StructFieldSpec) -> StructFieldSpec:
    """The field as help shows it: its docstring as one paragraph, and no default that says nothing, as of a switch that is off."""
    doc = field.helptext() if callable(field.helptext) else field.helptext
    kind: Any = field.type
    if any(field.default is nothing for nothing in (None, False, ())) or field.default == {}:
        kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="")]
    return dataclasses.replace(field, type=kind, helptext=" ".join(doc.split()) if doc else None)


@dataclasses.dataclass(frozen=True)
class _Box:
    # Fields of a dataclass under a heading of their own in its help, though not in its options' names. A docstring would be shown.
    fields: tuple[StructFieldSpec, ...]


_Box.__doc__ = ""


def _boxed(spec: StructConstructorSpec, sections: Mapping[str, Sequence[str]]) -> StructConstructorSpec:
    """`spec` with the named fields in boxes; a field that is a title itself stands at that place."""
    by_name, boxes = {field.name: field for field in spec.fields}, []
    for title, names in sections.items():
        found = tuple(by_name.pop(name) for name in names)
        if title in by_name:
            boxes.append(by_name.pop(title))
        elif found:
            kind: Any = Annotated[_Box, tyro.conf.OmitArgPrefixes]
            boxes.append(StructFieldSpec(title, kind, _Box(found)))

    def instantiate(**values: Any) -> Any:
        held = [values.pop(box.name) for box in boxes if isinstance(box.default, _Box)]
        return spec.instantiate(**values, **{name: value for box in held for name, value in box.items()})

    return StructConstructorSpec(instantiate, (*by_name.values(), *boxes))
