"""The demo's report: what its student has learnt, on episodes that neither teacher nor student was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxreflow.data.loader import TrainingSource
from jaxreflow.evaluation import chunks, compare, paired_noise
from jaxreflow.policy import SmolVLAPolicy
from jaxreflow.report import Example, plot_chunks, plot_losses, write_report
from jaxreflow.run_config import ReflowConfig
from jaxreflow.run_data import open_dataset, split_data

EARLY_FRAMES = 3
"""At its first frames a wall episode does not show yet on which side the demonstrator will pass: both are right."""


@dataclasses.dataclass(frozen=True)
class DemoConfig(ReflowConfig):
    """A reflow run that ends with a report; `from_scratch` trains the teacher first, by configs/demo_teacher.py."""

    from_scratch: bool = False
    """Train the teacher too, instead of taking the one in the repository."""
    two_sided_task: str = "Bypass a wall and reach a goal"
    """The task whose early frames are reported apart."""
    eval_frames: int = 192
    """Held-out frames that are compared, spread evenly."""


def write_demo_report(config: DemoConfig, run_dir: Path) -> str:
    """Compares the exported student with its teacher, writes RUN/report, and returns its table."""
    assert config.teacher.path is not None
    teacher = SmolVLAPolicy.from_pretrained(config.teacher.path, vlm=config.vlm)
    student = SmolVLAPolicy.from_pretrained(run_dir / "checkpoints" / "last" / "pretrained_model", vlm=config.vlm)
    dataset = open_dataset(config.dataset)
    source = split_data(dataset, teacher.config, teacher.transforms, config).held_out
    assert source is not None
    spread = np.unique(np.linspace(0, len(source) - 1, config.eval_frames).round().astype(int)).tolist()
    early = early_positions(source, config.two_sided_task)
    rows = compare(teacher, student, source, {"held-out frames": spread, "early wall frames": early})
    other = [i for i in spread if source.dataset.frame(int(source.frames[i]), ())["task"] != config.two_sided_task]
    # Two wall episodes, and a frame of another task where there is one.
    shown = [early[0], early[-EARLY_FRAMES], *other[:1]]
    names = dataset.features["action"].names or ["action 0", "action 1"]
    figures = {
        "chunks": plot_chunks(examples(teacher, student, source, shown), names),
        "loss": plot_losses(run_dir),
    }
    return write_report(run_dir / "report", rows, f"teacher@{teacher.config.num_steps}", figures)


def early_positions(source: TrainingSource, task: str) -> list[int]:
    """Positions in `source` of the first frames of every episode of `task`."""
    positions = {int(frame): i for i, frame in enumerate(source.frames)}
    episodes = [e for e in source.dataset.episodes if e.task == task and e.first in positions]
    return [positions[e.first + k] for e in episodes for k in range(min(EARLY_FRAMES, e.length))]


def examples(
    teacher: SmolVLAPolicy, student: SmolVLAPolicy, source: TrainingSource, positions: Sequence[int]
) -> list[Example]:
    """For each frame, 24 chunks of teacher@N, teacher@1 and student@1 from the same noise."""
    noise = paired_noise(teacher, len(positions), 24, seed=1)
    full = teacher.config.num_steps
    policies = ((f"teacher@{full}", teacher, full), ("teacher@1", teacher, 1), ("student@1", student, 1))
    sampled = {label: chunks(policy, source, positions, noise, steps) for label, policy, steps in policies}
    shown = []
    for i, position in enumerate(positions):
        frame = source.dataset.frame(int(source.frames[position]), source.dataset.camera_keys)
        image = frame[source.dataset.camera_keys[0]]
        shown.append(Example(image, frame["task"], {label: chunk[i] for label, chunk in sampled.items()}))
    return shown
