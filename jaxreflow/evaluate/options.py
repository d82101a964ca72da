"""What a comparison is asked to do: the options of `python -m jaxreflow.evaluate`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxreflow.evaluate.checks import Thresholds
from jaxreflow.evaluate.settings import Settings
from jaxreflow.support.storage import check_path
from jaxreflow.support.tyro_rules import RenameMap


@dataclasses.dataclass(frozen=True)
class DatasetFlags:
    """The LeRobotDataset to measure on (default: that of the student's run)."""

    root: str | None = None
    """Its directory."""
    repo_id: str | None = None
    """Its name on the hub, if it is not on disk."""
    revision: str | None = None
    """Of --dataset.repo-id: a commit, tag or branch (default: main)."""
    episodes: tuple[int, ...] | None = None
    """Episodes to measure on (default: those that the student's run held out, or all of another dataset)."""
    tolerance_s: float | None = None
    """Seconds between a timestamp and the frame of its video, as for train.py (default: as the student's run)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Compares a student with its teacher, or looks at a teacher alone, and writes a report."""

    teacher: str
    """The policy that was distilled: directory or hub name."""
    teacher_revision: str | None = None
    """Of a teacher from the hub: a commit, tag or branch (default: main)."""
    student: str | None = None
    """The distilled policy: directory or hub name."""
    student_revision: str | None = None
    """Of a student from the hub: a commit, tag or branch (default: main)."""
    out: str
    """Directory of the report. Files of an earlier report there are replaced."""
    dataset: DatasetFlags = DatasetFlags()
    run: str | None = None
    """Directory of the student's run, for its training loss (default: the run whose checkpoint the student is)."""
    features: str | None = None
    """Cache of image tokens made by `python -m jaxreflow.data.features`."""
    rename_map: RenameMap | None = None
    """Dataset names to policy names, as for train.py (default: as the student's run)."""
    stats_from: str | None = None
    """Normalise by `dataset`'s statistics or a FILE's (stats.json or safetensors; default: as the student's run)."""
    vlm: str | None = None
    """Directory of the VLM's config and tokenizer, as for train.py."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype (default: as the student's run, else float32)."""
    vision_positions: Literal["exact", "shifted"] | None = None
    """Position ids of the vision tower (default: as the student's run, else exact)."""
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher", "student", "out", "run", "features"):
            check_path(f"--{name}", getattr(self, name))
        check_path("--dataset.root", self.dataset.root)
