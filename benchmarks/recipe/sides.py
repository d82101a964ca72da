"""Which way round the wall: the share of chunks that go left, right, or neither way, from frames with both ways open.

    python -m benchmarks.recipe.sides --policy TEACHER STUDENT --dataset DIR --out sides.json

A chunk goes to a side if its actions lead 12 cm to that side of the wall's middle, summed up from where the hand is. The first
policy is the teacher, with its largest number of steps. The others are compared with it from the same noise: how many of their
chunks go another way than the teacher's, and how much of the squared error these chunks make up.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from benchmarks.recipe.lab import EARLY_TASK
from jaxreflow.data.frames import early_positions, pick
from jaxreflow.data.lerobot import load_dataset
from jaxreflow.evaluate.measures.distribution import draw_chunks
from jaxreflow.evaluate.sampling import Candidate, Trial, make_subject
from jaxreflow.evaluate.settings import Settings
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run.config import DatasetConfig, ReflowConfig
from jaxreflow.run.data import split_data
from jaxreflow.support.command_line import parse, run
from jaxreflow.support.compilation import use_compilation_cache

# Meta-World's hand moves a centimetre for an action of 1.
METRES_PER_ACTION = 0.01
ASIDE = 0.12
NEITHER, LEFT, RIGHT, BOTH = range(4)


@dataclasses.dataclass(frozen=True)
class SidesConfig:
    """Counts the ways round the wall, and the errors of chunks that go another way than the teacher's."""

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
    """Seed of the noise."""


def ways(chunks: Float[np.ndarray, "n C D"], start: float) -> Int[np.ndarray, " n"]:
    """NEITHER, LEFT, RIGHT or BOTH for each chunk in the dataset's units, from x = `start` in metres."""
    paths = start + METRES_PER_ACTION * np.cumsum(np.clip(chunks[..., 0], -1.0, 1.0), axis=1)
    left, right = (paths <= -ASIDE).any(1), (paths >= ASIDE).any(1)
    return np.select([left & right, left, right], [BOTH, LEFT, RIGHT], NEITHER)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Chunks of one policy at one step count, normalised, and their ways."""

    chunks: Float[np.ndarray, "n d"]
    ways: Int[np.ndarray, " n"]

    @classmethod
    def join(cls, parts: Sequence[Drawn]) -> Drawn:
        """Joins the chunks of several frames."""
        return cls(np.concatenate([part.chunks for part in parts]), np.concatenate([part.ways for part in parts]))

    def compare(self, goal: Drawn) -> dict[str, float]:
        """Shares of the ways, share of chunks that go another way than the teacher's, and relative errors.

        Also the shares of the squared error that belong to these chunks, and to the worst twentieth of all chunks. Two chunks
        that go neither way count as the same way.
        """
        agrees = self.ways == goal.ways
        error = np.square(self.chunks - goal.chunks, dtype=np.float64).sum(1)
        norm = np.square(goal.chunks, dtype=np.float64).sum(1)
        return {
            "left": float(np.mean(self.ways == LEFT)),
            "right": float(np.mean(self.ways == RIGHT)),
            "neither": float(np.mean(self.ways == NEITHER)),
            "another_way": float(np.mean(~agrees)),
            "another_way_share_of_error": _quotient(error[~agrees], error),
            "worst_twentieth_share_of_error": _quotient(np.sort(error)[-(-19 * len(error) // 20) :], error),
            "error": _quotient(error, norm) ** 0.5,
            "same_way_error": _quotient(error[agrees], norm[agrees]) ** 0.5,
        }


def _quotient(part: np.ndarray, whole: np.ndarray) -> float:
    """Quotient of the sums, and 0 for nothing."""
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0


def measure(config: SidesConfig) -> list[dict[str, object]]:
    """A record per policy and step count."""
    dataset = load_dataset(config.dataset)
    opened = [load_saved_policy(path) for path in config.policy]
    transforms = opened[0].load_transforms()
    source = split_data(dataset, opened[0].policy, transforms, ReflowConfig(dataset=DatasetConfig(holdout=0.0))).train
    teacher = make_subject("0", opened[0].load_params(), opened[0].config)
    students = [make_subject(str(i), c.load_params(), c.config, like=teacher) for i, c in enumerate(opened[1:], 1)]
    reference = Candidate(teacher, max(config.num_steps))
    settings = Settings(num_steps=config.num_steps, draws=config.draws, batch_size=1)
    trial = Trial((teacher, *students), reference, source, transforms, settings)
    frames = pick(early_positions(source, EARLY_TASK, 3), config.frames)
    drawn: dict[tuple[int, int], list[Drawn]] = {}
    for part in trial.batches(frames, 1, task="sides"):
        start = float(dataset.frame(int(source.frames[part.positions[0]]), ())["observation.state"][0])
        for candidate in trial.policies:
            chunks = draw_chunks(candidate, part.memories, config.draws, trial.action_dim, config.seed)
            actions = transforms.unnormalize_action(chunks.reshape(config.draws, -1, trial.action_dim))
            key = int(candidate.subject.name), candidate.num_steps
            drawn.setdefault(key, []).append(Drawn(chunks, ways(actions, start)))
    joined = {key: Drawn.join(parts) for key, parts in drawn.items()}
    return [
        {
            "policy": str(config.policy[index]),
            "num_steps": steps,
            "frames": len(frames),
            "draws": config.draws,
            **joined[index, steps].compare(joined[0, reference.num_steps]),
        }
        for index, steps in sorted(joined, key=lambda key: (key[0], -key[1]))
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
