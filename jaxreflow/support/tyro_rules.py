"""How tyro reads and shows the fields of a command's dataclass, where that differs from its own way."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
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
    registry.struct_rule(lambda info: _sectioned(info, sections if info.type is target else {}))
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


def _dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A dataclass by its fields; a default that says nothing, as of a switch that is off, is not shown."""
    if not (isinstance(info.type, type) and dataclasses.is_dataclass(info.type)):
        return None
    hints, docs = typing.get_type_hints(info.type, include_extras=True), field_docs(info.type)
    fields = []
    for field in dataclasses.fields(info.type):
        if isinstance(info.default, info.type):
            default = getattr(info.default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = tyro.MISSING if field.default is dataclasses.MISSING else field.default
        kind = hints[field.name]
        if any(default is each for each in (None, False, ())) or default == {}:
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint="")]
        fields.append(StructFieldSpec(field.name, kind, default, docs.get(field.name)))
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))


@dataclasses.dataclass(frozen=True)
class _Box:
    # Fields of a dataclass under a heading of their own in its help, though not in its options' names. A docstring would be shown.
    fields: tuple[StructFieldSpec, ...]


_Box.__doc__ = ""


def _sectioned(info: StructTypeInfo, sections: Mapping[str, Sequence[str]]) -> StructConstructorSpec | None:
    """`_dataclass`, whose fields that `sections` name stand in sections; one that is a title itself stands at that place."""
    if isinstance(info.default, _Box):
        return StructConstructorSpec(instantiate=dict, fields=info.default.fields)
    spec = _dataclass(info)
    if spec is None or not sections:
        return spec
    by_name = {field.name: field for field in spec.fields}
    boxes = []
    for title, names in sections.items():
        found = tuple(by_name.pop(name) for name in names if name in by_name)
        if title in by_name:
            boxes.append(by_name[title])
        elif found:
            kind: Any = Annotated[_Box, tyro.conf.OmitArgPrefixes]
            boxes.append(StructFieldSpec(title, kind, _Box(found)))
    rest = [field for field in by_name.values() if field not in boxes]

    def instantiate(**values: Any) -> Any:
        held = [values.pop(name) for name in list(values) if name not in by_name]
        return info.type(**values, **{name: value for section in held for name, value in section.items()})

    return StructConstructorSpec(instantiate, (*rest, *boxes))


def field_docs(cls: type) -> dict[str, str]:
    """The docstring below every field of a dataclass, its bases' included."""
    docs: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = " ".join(doc.split())
    return docs
