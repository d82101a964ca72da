"""Which way round the wall: the share of chunks that go left, right, or neither way, from frames where both are open.

    python -m benchmarks.recipe.sides --policy TEACHER STUDENT --dataset DIR --out sides.json

A chunk goes to a side if its actions, summed up from where the hand is, lead 12 cm to that side of the wall's middle. The first
policy's ten-step sampler is what the others are compared with.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks.recipe.lab import EARLY_TASK
from jaxreflow.command_line import parse, run
from jaxreflow.compilation import use_compilation_cache
from jaxreflow.data.lerobot import load_dataset
from jaxreflow.evaluation.distribution import draw_chunks
from jaxreflow.evaluation.frames import early_positions, pick
from jaxreflow.evaluation.sampling import Candidate, Trial, make_subject
from jaxreflow.evaluation.settings import Settings
from jaxreflow.pretrained import load_checkpoint
from jaxreflow.run_config import DatasetConfig, ReflowConfig
from jaxreflow.run_data import split_data

# Meta-World's hand moves a centimetre for an action of 1.
METRES_PER_ACTION = 0.01
ASIDE = 0.12


@dataclasses.dataclass(frozen=True)
class SidesConfig:
    """Counts the ways round the wall."""

    policy: tuple[Path, ...]
    """Policies, the teacher first."""
    dataset: Path
    """Dataset with episodes of the wall task."""
    out: Path
    """JSON file of the shares."""
    num_steps: tuple[int, ...] = (10, 2, 1)
    """Euler steps of every policy."""
    draws: int = 256
    """Chunks per frame."""
    frames: int = 16
    """Frames, spread over the first three of every episode."""
    seed: int = 0
    """Of the noise."""


def ways(chunks: Float[np.ndarray, "n C D"], start: float) -> tuple[float, float, float]:
    """Shares of chunks, in the dataset's units, that go left, right and neither way from x = `start` in metres."""
    paths = start + METRES_PER_ACTION * np.cumsum(np.clip(chunks[..., 0], -1.0, 1.0), axis=1)
    left, right = (paths <= -ASIDE).any(1), (paths >= ASIDE).any(1)
    return float(np.mean(left & ~right)), float(np.mean(right & ~left)), float(np.mean(~left & ~right))


def measure(config: SidesConfig) -> list[dict[str, object]]:
    """A record per policy and step count: means over frames of the shares."""
    dataset = load_dataset(config.dataset)
    opened = [load_checkpoint(path) for path in config.policy]
    transforms = opened[0].load_transforms()
    source = split_data(dataset, opened[0].policy, transforms, ReflowConfig(dataset=DatasetConfig(holdout=0.0))).train
    teacher = make_subject("0", opened[0].load_params(), opened[0].config)
    students = [make_subject(str(i), c.load_params(), c.config, like=teacher) for i, c in enumerate(opened[1:], 1)]
    reference = Candidate(teacher, config.num_steps[0])
    settings = Settings(num_steps=config.num_steps, draws=config.draws, batch_size=1)
    trial = Trial((teacher, *students), reference, source, transforms, settings)
    shares: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for part in trial.batches(pick(early_positions(source, EARLY_TASK, 3), config.frames), 1, task="sides"):
        start = float(dataset.frame(int(source.frames[part.positions[0]]), ())["observation.state"][0])
        for candidate in trial.policies:
            drawn = draw_chunks(candidate, part.memories, config.draws, trial.action_dim, config.seed)
            chunks = transforms.unnormalize_action(drawn.reshape(config.draws, -1, trial.action_dim))
            shares.setdefault((int(candidate.subject.name), candidate.num_steps), []).append(ways(chunks, start))
    return [
        {
            "policy": str(config.policy[index]),
            "num_steps": steps,
            "frames": len(found),
            "draws": config.draws,
            **dict(zip(("left", "right", "neither"), np.mean(found, axis=0).tolist(), strict=True)),
        }
        for (index, steps), found in sorted(shares.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]


def main() -> int:
    """0 if the file was written, 1 after an error."""
    return run(_main, None)


def _main(args: list[str]) -> int:
    config = parse(SidesConfig, args, prog="python -m benchmarks.recipe.sides", about=__doc__ or "")
    use_compilation_cache()
    records = measure(config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    for record in records:
        print(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
