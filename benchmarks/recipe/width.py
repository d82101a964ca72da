"""The study of width: whether the best learning rate of Muon stays where it is when the expert is wider.

    python -m benchmarks.recipe --study width

Each width has a teacher of its own, which is trained from random weights on the same demonstrations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.recipe.lab import FULL, Lab, side_by_side
from benchmarks.recipe.page import fill_page, markdown_table
from benchmarks.recipe.variants import Variant
from benchmarks.recipe.write_up import fidelity, read_report, relative_error
from jaxreflow.model.params import param_shapes, trainable_in_reflow
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy

# Of the expert, relative to the VLM: 1.5 is that of configs/metaworld_teacher.py.
WIDTHS = (0.75, 1.5, 3.0)
STUDENTS = tuple(
    Variant(f"lr_{rate}", "learning rate", rate, ("--objective", "pseudo-huber", "--optimizer.lr", rate))
    for rate in ("1e-3", "2e-3", "4e-3", "8e-3")
)
SCALE = dataclasses.replace(FULL, teacher_updates=2_000, student_updates=1_000)


class WidthLab(Lab):
    """The lab of one width, below the lab whose demonstrations it uses."""

    @property
    def data(self) -> Path:
        """The demonstrations of all widths."""
        return self.root.parent / "data"

    @property
    def held_out(self) -> Path:
        """The episodes on which the students of all widths are measured."""
        return self.root.parent / "held_out"


def width_lab(lab: Lab, width: float) -> WidthLab:
    """The lab of an expert's width below `lab`."""
    flags = ("--policy.expert-width-multiplier", str(width))
    return WidthLab(lab.root / f"width_{width}", lab.scale, lab.image_size, flags)


def run_study(lab: Lab, out: Path, jobs: int) -> None:
    """Makes what is missing and fills the study's block of `out`/results.md."""
    lab.record()
    labs = [width_lab(lab, width) for width in WIDTHS]
    side_by_side(jobs, [functools.partial(_teach_and_measure, own) for own in labs])
    write_width(out, lab)


def _teach_and_measure(lab: WidthLab) -> None:
    lab.train_teacher()
    lab.compute_features()
    for student in STUDENTS:
        lab.train(student)
        lab.evaluate_short(student)


def write_width(out: Path, lab: Lab) -> None:
    """Fills the study's block of `out`/results.md."""
    fill_page(out / "results.md", {"width": lambda: width_table(lab)})


def width_table(lab: Lab) -> str | None:
    """Errors in one step by width and learning rate; None until all are measured."""
    heads = ["expert's width", "trained parameters", *(student.change for student in STUDENTS), "best rate"]
    rows = []
    for own in (width_lab(lab, width) for width in WIDTHS):
        reports = [report for student in STUDENTS if (report := read_report(own, student.name)) is not None]
        if len(reports) < len(STUDENTS):
            return None
        errors = [relative_error(report, "student", 1, "all") for report in reports]
        best = best_rate([fidelity(report, "student", 1, "all")["error"]["value"] for report in reports])
        teacher = load_saved_policy(own.teacher)
        width = str(teacher.config.expert_hidden_size)
        rows.append([width, f"{_trained_parameters(teacher) / 1e6:.2f}M", *errors, best])
    return markdown_table(heads, rows)


def best_rate(errors: Sequence[float]) -> str:
    """The learning rate at the lowest point of a parabola through the least of the students' errors and its two neighbours.

    The parabola is over the rate's logarithm. Empty if its lowest point is not between the first and the last rate.
    """
    rates = np.log([float(student.change) for student in STUDENTS])
    middle = min(max(int(np.argmin(errors)), 1), len(errors) - 2)
    near = slice(middle - 1, middle + 2)
    curvature, slope, _ = np.polyfit(rates[near], errors[near], 2)
    if curvature <= 0:
        return ""
    lowest = -slope / (2 * curvature)
    return f"{np.exp(lowest) * 1e3:.1f}e-3" if rates[0] < lowest < rates[-1] else ""


def _trained_parameters(teacher: SavedPolicy) -> int:
    shapes = param_shapes(teacher.config)
    return sum(math.prod(shape) for path, shape in shapes.items() if trainable_in_reflow(path))
