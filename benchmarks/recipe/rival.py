"""The study of the published rival: SnapFlow beside reflow, after as many updates and in as much time.

    python -m benchmarks.recipe --study rival

Teacher and reflow's student are those of `benchmarks/recipe/policies`. Data are recorded, and SnapFlow is trained on them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from benchmarks.recipe.lab import FULL, SIDES, Lab, policy_name
from benchmarks.recipe.latency import STUDENT, TEACHER
from benchmarks.recipe.page import fill_page, markdown_table
from benchmarks.recipe.variants import RIVAL_RATES, RIVALS, Variant
from benchmarks.recipe.write_up import fidelity, measured, neither, read_report, write_study

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
    for student in RIVAL_RATES:
        lab.train(student)
        lab.evaluate(student, num_steps=(1,), draws=lab.scale.screening_draws)
    for student in chosen_rivals(lab):
        lab.train(student)
    for student in STUDENTS:
        lab.evaluate(student, num_steps=(1,))
    lab.measure_sides(SIDES, STUDENTS)
    lab.close_loop(STUDENTS)
    write_rival(out, lab)


def chosen_rivals(lab: RivalLab) -> tuple[Variant, ...]:
    """The rivals with the optimizer and the rate whose short run came nearest to the teacher on early frames.

    There several ways are open, so one step is hardest.
    """

    def error(student: Variant) -> float:
        report = read_report(lab, student.name)
        return math.inf if report is None else fidelity(report, "student", 1, "early")["error"]["value"]

    best = min(RIVAL_RATES, key=error)
    return tuple(dataclasses.replace(rival, flags=(*best.flags, *rival.flags)) for rival in RIVALS)


def write_rival(out: Path, lab: RivalLab) -> None:
    """Fills the study's blocks of `out`/results.md, and keeps the results behind them."""
    fill_page(out / "results.md", {"rival rates": lambda: rates_table(lab)})
    write_study(out, lab, "rival", STUDENTS, lambda: fidelity_table(lab))
    if (lab.results / SIDES).exists():
        records = json.loads((lab.results / SIDES).read_text(encoding="utf-8"))
        named = [{**record, "policy": policy_name(record["policy"])} for record in records]
        (out / "results" / f"rival_{SIDES}").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


def rates_table(lab: RivalLab) -> str | None:
    """How far SnapFlow's short runs are from the teacher in ten steps; None until all are measured."""
    rows = []
    for student in RIVAL_RATES:
        report = read_report(lab, student.name)
        if report is None:
            return None
        rows.append([student.change, *measured(report, "student", 1)])
    return markdown_table(
        ["optimizer, learning rate", "error, all frames", "early wall frames", "energy distance", "spread kept"], rows
    )


def fidelity_table(lab: RivalLab) -> str | None:
    """How far each policy in one step is from the teacher in ten; None until all are measured."""
    rows = []
    for student in STUDENTS:
        report = read_report(lab, student.name)
        if report is None:
            return None
        if student is REFLOW:
            rows.append(["the teacher itself", *measured(report, TEACHER.name, 1), neither(lab, TEACHER.name, 1)])
        rows.append([student.change, *measured(report, "student", 1), neither(lab, student.name, 1)])
    heads = ["in one step", "error, all frames", "early wall frames", "energy distance", "spread kept", "neither side"]
    return markdown_table(heads, rows)
