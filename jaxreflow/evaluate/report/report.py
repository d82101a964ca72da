"""The report: what was measured on what, the measures and the verdict, as plain data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.settings import Settings
from jaxreflow.evaluate.verdict import Verdict
from jaxreflow.support.strict_json import parse_json
from jaxreflow.support.typed_json import from_json


@dataclasses.dataclass(frozen=True)
class About:
    """What was measured on what."""

    teacher: str
    """Its name on the hub, or that of its folder or run; the student's likewise. No path stands in a report."""
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
        return from_json(Report, parse_json(path.read_text(encoding="utf-8")), floats="null is nan")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path}: expected a report of `python -m jaxreflow.evaluate`, found another file ({error}); "
            "write it anew with that command, or remove it"
        ) from error
