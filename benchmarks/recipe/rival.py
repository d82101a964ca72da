"""The study of the published rival: SnapFlow beside reflow, after as many updates and in as much time.

    python -m benchmarks.recipe --study rival

Teacher and reflow's student are those of `benchmarks/recipe/policies`. Data are recorded, and SnapFlow is trained on them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.recipe.lab import CLOSED_LOOP, FULL, SIDES, Lab, keep_results, named
from benchmarks.recipe.latency import STUDENT, TEACHER
from benchmarks.recipe.page import fill_page, markdown_table
from benchmarks.recipe.variants import RIVALS, Variant
from benchmarks.recipe.write_up import distribution, relative_error
from jaxreflow.sim.results import comparison_table, read_results

REFLOW = Variant("student", "reflow", "reflow, 16,000 updates", acts_in=(1,))
STUDENTS = (REFLOW, *RIVALS)
SCALE = dataclasses.replace(FULL, episodes=130)


class RivalLab(Lab):
    """The lab of this study, whose teacher and first student are there."""

    @property
    def teacher(self) -> Path:
        """The teacher in this repository."""
        return TEACHER

    def student(self, name: str) -> Path:
        """Reflow's student in this repository, or a student that is trained here."""
        return STUDENT if name == REFLOW.name else super().student(name)

    def train_teacher(self) -> None:
        """It is there."""


def run_study(lab: RivalLab, out: Path) -> None:
    """Makes what is missing and fills the study's blocks of `out`/results.md."""
    lab.prepare()
    for student in RIVALS:
        lab.train(student)
    for student in STUDENTS:
        lab.evaluate(student, num_steps=(1,))
    lab.measure_sides(SIDES, STUDENTS)
    lab.close_loop(STUDENTS)
    write_rival(out, lab)


def write_rival(out: Path, lab: RivalLab) -> None:
    """Fills the study's blocks of `out`/results.md, and keeps the results behind them."""
    results = [named(result) for result in read_results(lab.results / CLOSED_LOOP)]
    fill_page(
        out / "results.md",
        {
            "rival": lambda: fidelity_table(lab),
            "rival closed loop": lambda: comparison_table(results) if results else None,
        },
    )
    keep_results(out / "results" / "rival_closed_loop.jsonl", results)


def fidelity_table(lab: RivalLab) -> str | None:
    """How far each policy in one step is from the teacher in ten; None until all are measured."""
    reports = {student: lab.results / student.name / "report.json" for student in STUDENTS}
    if not all(path.exists() for path in reports.values()):
        return None
    rows = []
    for student, path in reports.items():
        report = json.loads(path.read_text(encoding="utf-8"))
        if student is REFLOW:
            rows.append(["the teacher itself", *_measured(report, "teacher"), _neither(lab, lab.teacher)])
        rows.append([student.change, *_measured(report, "student"), _neither(lab, lab.student(student.name))])
    heads = ["in one step", "error, all frames", "early wall frames", "energy distance", "spread kept", "neither side"]
    return markdown_table(heads, rows)


def _measured(report: dict[str, object], role: str) -> Sequence[str]:
    return *(relative_error(report, role, 1, frames) for frames in ("all", "early")), *distribution(report, role, 1)


def _neither(lab: RivalLab, policy: Path) -> str:
    path = lab.results / SIDES
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return next((f"{r['neither']:.3f}" for r in records if (r["policy"], r["num_steps"]) == (str(policy), 1)), "")
