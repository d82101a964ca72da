"""Whether a policy offers the same choices as its teacher: chunks of one observation as samples of a distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from jaxreflow import flow
from jaxreflow.evaluate.sampling import AtSteps, Candidate, Memories, Trial, chunks

DRAWS_AT_A_TIME = 64


@dataclasses.dataclass(frozen=True)
class Distribution(AtSteps):
    """One policy's chunks against the teacher's at its own step count, from other noise; means over observations.

    Normalised actions, real dims, whole chunks as vectors.
    """

    observations: int
    draws: int
    energy: float
    """Energy distance `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased: 0 is the same, and chance may make it negative."""
    share: float
    """Energy distance divided by the teacher's own `E|Y - Y'|`: 0 is the same, 1 as far as its chunks are from each other."""
    spread_kept: float
    """Standard deviation over draws, divided by the teacher's."""
    floor: bool = False
    """Whether this is the teacher against itself: what the number of draws can tell apart."""


def mean_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Mean Euclidean distance over all pairs."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return float(np.sqrt(np.maximum(squares, 0)).mean())


def own_distance(x: Float[np.ndarray, "n d"]) -> float:
    """Mean Euclidean distance over pairs of different draws: unbiased for `E|X - X'|`."""
    n = len(x)
    centred = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
    gram = centred @ centred.T
    squares = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    np.fill_diagonal(squares, 0)
    return float(np.sqrt(np.maximum(squares, 0)).sum() / (n * (n - 1)))


def energy_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|` from independent draws, unbiased (Szekely and Rizzo 2013)."""
    return 2 * mean_distance(x, y) - own_distance(x) - own_distance(y)


def spread(x: Float[np.ndarray, "n d"]) -> float:
    """Standard deviation over draws: the root of the mean variance over coordinates."""
    return float(np.sqrt(np.var(x, axis=0, dtype=np.float64, ddof=1).mean()))


def draw_chunks(candidate: Candidate, memories: Memories, draws: int, real: int, seed: int) -> Float[np.ndarray, "n d"]:
    """`draws` chunks of the one observation in `memories`, as vectors."""
    config = candidate.subject.config
    noise = flow.sample_noise(jax.random.key(seed), (1, draws, config.chunk_size, config.max_action_dim))
    parts = [noise[:, i : i + DRAWS_AT_A_TIME] for i in range(0, draws, DRAWS_AT_A_TIME)]
    sampled = np.concatenate([chunks(candidate, memories, part)[0] for part in parts])
    return sampled[..., :real].reshape(draws, -1)


def measure_distributions(trial: Trial, positions: Sequence[int]) -> list[Distribution]:
    """Every candidate against the teacher on these frames, and first the floor: the teacher against itself.

    The reference has noise of its own; the floor and the candidates share another.
    """
    real, draws, seed, reference = trial.action_dim, trial.settings.draws, trial.settings.seed, trial.reference
    compared = (reference, *(c for c in trial.policies if c.label != reference.label))
    measured: dict[str, list[tuple[float, float, float]]] = {}
    for i, part in enumerate(trial.batches(positions, 1, task="distributions")):
        seeds = (seed + 1_000 + 2 * i, seed + 1_001 + 2 * i)
        goal = draw_chunks(reference, part.memories, draws, real, seeds[0])
        scale, width = own_distance(goal), spread(goal)
        for candidate in compared:
            drawn = draw_chunks(candidate, part.memories, draws, real, seeds[1])
            energy = energy_distance(drawn, goal)
            kept = spread(drawn) / width if width else 1.0
            measured.setdefault(candidate.label, []).append((energy, energy / scale if scale else 0.0, kept))
    results = []
    for candidate in compared:
        energy, share, kept = np.mean(measured[candidate.label], axis=0).tolist()
        floor = candidate.label == reference.label
        results.append(
            Distribution(candidate.subject.name, candidate.num_steps, len(positions), draws, energy, share, kept, floor)
        )
    return results
