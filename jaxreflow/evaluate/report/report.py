"""The report: what was measured on what, the measures and the verdict, as plain data."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.settings import Settings
from jaxreflow.evaluate.verdict import Verdict
from jaxreflow.support.strict_json import parse_json


@dataclasses.dataclass(frozen=True)
class About:
    """What was measured on what."""

    teacher: str
    student: str | None
    dataset: str
    episodes: tuple[int, ...]
    held_out: bool
    """Whether these are the episodes that the student's run held out."""
    teacher_steps: int
    chunk_size: int
    action_names: tuple[str, ...]
    padded_dims: int
    fps: float
    dtype: str
    device: str
    versions: dict[str, str]
    settings: Settings


@dataclasses.dataclass(frozen=True)
class Report:
    """All that report.json holds."""

    about: About
    measures: Measures
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Plain values; null stands for what is not finite."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_report(path: Path) -> Report:
    """The report in a report.json; NaN stands for what was not finite.

    Raises:
        ConfigError: the file is damaged, or of another version.
    """
    try:
        return _parse(Report, parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: expected a report of `python -m jaxreflow.evaluate`, found another file ({error}); write it anew with "
            "that command, or remove it"
        ) from error


def _parse(kind: Any, value: Any) -> Any:
    """`value` of a JSON document as what the annotation `kind` says; TypeError where it is something else."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _parse(hints[name], each) for name, each in value.items()})  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _parse(next(each for each in args if each is not types.NoneType), value)
    if origin is list and isinstance(value, list):
        return [_parse(args[0], each) for each in value]
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(args[0], each) for each in value)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {name: _parse(args[1], each) for name, each in value.items()}
    if kind is float and value is None:
        return math.nan
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if (origin is typing.Literal and value in args) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise TypeError(f"expected {kind}, found {value!r:.80}")
