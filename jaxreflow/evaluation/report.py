"""The report: what was measured on what, the measures and the verdict, as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxreflow.evaluation.measure import Measures
from jaxreflow.evaluation.settings import Settings
from jaxreflow.evaluation.verdict import Verdict


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
