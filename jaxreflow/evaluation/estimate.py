"""Quotients of norms with intervals by resampling episodes: frames of one episode are not independent."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

RESAMPLES = 2_000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap 95 % interval; None where one episode alone gives no interval."""

    value: float
    low: float | None = None
    high: float | None = None


def root_quotient(error: float | np.ndarray, reference: float | np.ndarray) -> np.ndarray:
    """`sqrt(error / reference)`, elementwise; 0 where both are 0, inf where only the reference is."""
    error, reference = np.asarray(error, np.float64), np.asarray(reference, np.float64)
    safe = np.where(reference > 0, reference, 1.0)
    return np.where(reference > 0, np.sqrt(error / safe), np.where(error > 0, np.inf, 0.0))


def relative_error(
    error: Float[np.ndarray, " E"], reference: Float[np.ndarray, " E"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """`|| a - b || / || b ||` over a set, from its squared norms per episode, with its interval over episodes.

    Each resample draws as many episodes as there are, with replacement; sums come before the quotient.
    """
    value = float(root_quotient(error.sum(), reference.sum()))
    episodes = len(error)
    if episodes < 2:
        return Estimate(value)
    counts = np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
    low, high = np.percentile(root_quotient(counts @ error, counts @ reference), [2.5, 97.5])
    return Estimate(value, float(low), float(high))
