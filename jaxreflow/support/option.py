"""What an option says of itself where it is declared: its box of the help, whether a resumed run may change it, its name in prose.

A field of a settings dataclass that is `option(...)` needs no entry anywhere else. A subclass that only changes a field's default
keeps what its base says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_KEY = "option"
_UNSET: Any = object()


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a field beside its type, default and docstring."""

    section: str | None = None
    """Title of its box in `--help`; None: the first box, or that of the field's own dataclass."""
    may_change: bool = False
    """Whether a resumed run may have another value: it says where things lie, what is written, or how long the run goes on."""
    label: str | None = None
    """What model cards and dry runs call it; None: they do not list it by itself."""
    unsaid: Any = _UNSET
    """The value that is not worth listing; without one every value is listed."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    section: str | None = None,
    may_change: bool = False,
    label: str | None = None,
    unsaid: Any = _UNSET,
) -> Any:
    """A dataclass field with a default, or one made by `factory`, that carries an `Option`."""
    metadata = {_KEY: Option(section, may_change, label, unsaid)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def option_of(cls: type, name: str) -> Option:
    """What the nearest declaration of a field says, in the class or its bases."""
    for base in cls.__mro__:
        field = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if field is not None and _KEY in field.metadata:
            found: Option = field.metadata[_KEY]
            return found
    return Option()


def boxes(cls: type, titles: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The fields in each box of the help, in the order of their declarations; the titles in the given order."""
    own = [(field.name, option_of(cls, field.name).section) for field in dataclasses.fields(cls)]
    strange = sorted({section for _, section in own if section is not None} - set(titles))
    if strange:
        raise ValueError(f"{cls.__name__}: {', '.join(strange)} is no title of a box; there are {', '.join(titles)}")
    return {title: tuple(name for name, section in own if section == title) for title in titles}


def changed_settings(before: Any, after: Any, prefix: str = "") -> Iterator[str]:
    """`--name OLD -> NEW` for every field that differs and must not; groups of fields are looked into."""
    for field in dataclasses.fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(new):
            yield from changed_settings(old, new, f"{name}.")
        elif old != new and not option_of(type(after), field.name).may_change:
            yield f"--{name} {old} -> {new}"


def labelled(settings: Any) -> list[tuple[str, str]]:
    """Label and value, in words, of every field that is to be listed, those of groups of settings among them."""
    found = []
    for field in dataclasses.fields(settings):
        about, value = option_of(type(settings), field.name), getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += labelled(value)
        if about.label is not None and (about.unsaid is _UNSET or value != about.unsaid):
            found.append((about.label, f"{value:g}" if isinstance(value, float) else str(value)))
    return found
