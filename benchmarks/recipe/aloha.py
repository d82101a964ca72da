"""The bimanual study: gym-aloha's TransferCube, its teacher, its students and the published rival.

    python -m benchmarks.recipe --study aloha

A teacher that learns from demonstrations alone does not find the cube. So its tower first learns to see (`see_first`). Then look at
the teacher's miss (`python -m benchmarks.recipe.miss`) and its success before anything is distilled.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.recipe.lab import FULL, TEACHER, Lab, Scale
from benchmarks.recipe.page import markdown_table
from benchmarks.recipe.variants import DEFAULT, NOISE_BIASED, RIVALS
from benchmarks.recipe.write_up import Report, fidelity, measured, read_report, shown_name, write_study

ENV, EARLY_TASK = "aloha:transfer-cube", "transfer_cube"
ALOHA = dataclasses.replace(FULL, demonstrations=(1_500,), held_out=(120,), episodes=500)
BIASED = dataclasses.replace(NOISE_BIASED, acts_in=(1, 2, 10))
# What of the fine-tune is only more training: the same at the times of the teacher's training.
FINE_TUNE = dataclasses.replace(
    BIASED,
    name="fine_tune",
    change="flow matching on the data, t from Beta(1.5, 1)",
    flags=("--time-law", "beta", "--num-steps", "2"),
)
STUDENTS = (dataclasses.replace(DEFAULT, config="aloha"), BIASED, FINE_TUNE, *RIVALS)


class AlohaLab(Lab):
    """The lab of this study: its teacher starts with a tower that can see."""

    def train_teacher(self) -> None:
        """A blank policy, its tower, and then the teacher from it."""
        blank, seeing = self.root / "blank", self.root / "seeing"
        self._train("blank", "aloha_teacher", "--dataset.root", self.data, "--output-dir", blank, "--steps", "1")
        pictures = ("--options.size", str(self.image_size))
        short = ("--episodes", "40", "--updates", "10") if self.scale.teacher_updates else ()
        see = ("-m", "benchmarks.recipe.see_first", "--policy", blank / "initial_policy", "--out", seeing)
        self.run("seeing", seeing, *see, *pictures, *short)
        super().train_teacher()


def aloha_lab(root: Path, scale: Scale) -> AlohaLab:
    """The lab of this study below `root`."""
    flags = ("--policy.path", str(root / "seeing"), "--policy.new", "False")
    return AlohaLab(root, scale, 96, flags, ENV, "aloha_teacher", EARLY_TASK)


def run_study(lab: AlohaLab, out: Path) -> None:
    """Makes what is missing and fills the study's blocks of `out`/results.md."""
    lab.prepare()
    for student in STUDENTS:
        lab.train(student)
        lab.evaluate(student, num_steps=(10, 2, 1))
    lab.close_loop(STUDENTS)
    write_aloha(out, lab)


def write_aloha(out: Path, lab: AlohaLab) -> None:
    """Fills the study's blocks of `out`/results.md with what is measured, and keeps the results behind them."""
    write_study(out, lab, "aloha", STUDENTS, lambda: fidelity_table(lab))


def fidelity_table(lab: AlohaLab) -> str | None:
    """How far every policy is from the teacher in ten steps, over real action dims and over those that only pad; None before."""
    rows: list[list[str]] = []
    for student in STUDENTS:
        report = read_report(lab, student.name)
        if report is not None:
            if not rows:
                rows += [[f"{TEACHER}@{steps}", *_errors(report, TEACHER, steps)] for steps in (2, 1)]
            name = shown_name(student.name)
            rows += [[f"{name}@{steps}", *_errors(report, "student", steps)] for steps in student.acts_in[::-1]]
    heads = ["relative error to teacher@10", "all frames", "early frames", "energy distance", "spread kept"]
    return markdown_table([*heads, "all frames, padded dims"], rows) if rows else None


def _errors(report: Report, role: str, steps: int) -> list[str]:
    padded = fidelity(report, role, steps, "all")["padded_error"]
    return [*measured(report, role, steps), f"{padded:.3f}"]
