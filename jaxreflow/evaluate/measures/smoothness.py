"""Smoothness of what a robot executes: jerk within a chunk, and the jump from one chunk to the next."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxreflow.data.frames import pairs_apart
from jaxreflow.evaluate.sampling import AtSteps, Candidate, Trial, chunks, noise_for


@dataclasses.dataclass(frozen=True)
class Jump(AtSteps):
    """The seam between the chunk at frame f and the one at f + n, each from its own noise; means over dims, normalised units."""

    n_action_steps: int
    pairs: int
    disagreement: float | None
    """Mean | a_f[n] - a_(f+n)[0] |: two chunks on the same moment; None where chunks end before it."""
    step: float
    """Mean | a_(f+n)[0] - a_f[n-1] |: the step that the robot makes there."""
    inner_step: float | None
    """Mean | a_f[n-1] - a_f[n-2] |: the step just before, inside the chunk."""


def third_difference(actions: Float[np.ndarray, "*batch C d"]) -> Float[np.ndarray, "*batch D d"]:
    """`a[i+3] - 3 a[i+2] + 3 a[i+1] - a[i]` along the chunk: jerk, up to the cube of the frame rate."""
    return np.diff(actions, n=3, axis=-2)


def measure_jumps(trial: Trial) -> list[Jump]:
    """Seams of every candidate at every `n_action_steps` for which held-out episodes and chunks are long enough."""
    config, settings = trial.config, trial.settings
    jumps = []
    for n in sorted(set(settings.n_action_steps)):
        pairs = pairs_apart(trial.source, n, settings.pairs) if n <= config.chunk_size else []
        if not pairs:
            continue
        # First and second frames are in one list: even places are the first.
        positions = [position for pair in pairs for position in pair]
        seen: dict[str, list[np.ndarray]] = {candidate.label: [] for candidate in trial.policies}
        for part in trial.batches(positions, task=f"seams after {n} actions"):
            noise = noise_for(part, 1, config, settings.seed + 1)
            for candidate in trial.policies:
                sampled = chunks(candidate, part.memories, noise)[: part.valid, 0]
                seen[candidate.label].append(sampled[..., : trial.action_dim])
        jumps += [_jump(candidate, n, np.concatenate(seen[candidate.label])) for candidate in trial.policies]
    return jumps


def _jump(candidate: Candidate, n: int, sampled: Float[np.ndarray, "F C d"]) -> Jump:
    first, second = sampled[0::2], sampled[1::2]

    def mean(difference: np.ndarray) -> float:
        return float(np.mean(np.abs(difference)))

    return Jump(
        name=candidate.subject.name,
        num_steps=candidate.num_steps,
        n_action_steps=n,
        pairs=len(first),
        disagreement=mean(first[:, n] - second[:, 0]) if n < sampled.shape[1] else None,
        step=mean(second[:, 0] - first[:, n - 1]),
        inner_step=mean(first[:, n - 1] - first[:, n - 2]) if n > 1 else None,
    )
