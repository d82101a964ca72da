"""The bimanual study: gym-aloha's TransferCube, its teacher, its students and the published rival.

    python -m benchmarks.recipe --study aloha

A teacher that learns from demonstrations alone does not find the cube. So its tower first learns to see (`see_first`). Then look at
the teacher's miss (`python -m benchmarks.recipe.miss`) and its success before anything is distilled.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks.recipe.lab import CLOSED_LOOP, FULL, Lab, Scale
from benchmarks.recipe.page import fill_page
from benchmarks.recipe.variants import DEFAULT, NOISE_BIASED, RIVALS
from jaxreflow.sim.results import comparison_table, read_results

ENV, EARLY_TASK = "aloha:transfer-cube", "transfer_cube"
ALOHA = dataclasses.replace(FULL, demonstrations=(1_500,), held_out=(120,), episodes=500)
STUDENTS = (dataclasses.replace(DEFAULT, config="aloha"), NOISE_BIASED, *RIVALS)


class AlohaLab(Lab):
    """The lab of this study: its teacher starts with a tower that can see."""

    def train_teacher(self) -> None:
        """A blank policy, its tower, and then the teacher from it."""
        blank, seeing = self.root / "blank", self.root / "seeing"
        data = ("--dataset.root", self.root / "data")
        self.run("blank", blank, "train.py", "aloha_teacher", *data, "--output-dir", blank, "--steps", "1")
        pictures = ("--options.size", str(self.image_size))
        short = ("--episodes", "20", "--updates", "10") if self.scale.teacher_updates else ()
        see = ("-m", "benchmarks.recipe.see_first", "--policy", blank / "initial_policy", "--out", seeing)
        self.run("seeing", seeing, *see, *pictures, *short)
        super().train_teacher()


def aloha_lab(root: Path, scale: Scale) -> AlohaLab:
    """The lab of this study below `root`."""
    flags = ("--policy.path", str(root / "seeing"), "--policy.new", "False")
    return AlohaLab(root, scale, 96, flags, ENV, "aloha_teacher", EARLY_TASK)


def run_study(lab: AlohaLab, out: Path) -> None:
    """Makes what is missing and fills the study's block of `out`/results.md."""
    lab.prepare()
    for student in STUDENTS:
        lab.train(student)
        lab.evaluate(student, num_steps=(10, 2, 1))
    lab.close_loop(STUDENTS)
    results = list(read_results(lab.results / CLOSED_LOOP))
    fill_page(out / "results.md", {"aloha closed loop": lambda: comparison_table(results) if results else None})
