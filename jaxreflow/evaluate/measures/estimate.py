"""Quotients of norms with intervals by resampling episodes: frames of one episode are not independent."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

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
    if len(error) < 2:
        return Estimate(value)
    counts = _resample(len(error), seed, resamples)
    low, high = np.percentile(root_quotient(counts @ error, counts @ reference), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def relative_error_difference(
    first: Float[np.ndarray, " E"],
    second: Float[np.ndarray, " E"],
    reference: Float[np.ndarray, " E"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Relative error of `second` less that of `first`, from squared norms of the same episodes, which are resampled together."""
    value = float(root_quotient(second.sum(), reference.sum()) - root_quotient(first.sum(), reference.sum()))
    if len(reference) < 2:
        return Estimate(value)
    counts = _resample(len(reference), seed, resamples)
    drawn = counts @ reference
    differences = root_quotient(counts @ second, drawn) - root_quotient(counts @ first, drawn)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _resample(episodes: int, seed: int, resamples: int) -> Int[np.ndarray, "R E"]:
    """How often each resample draws each episode."""
    return np.random.default_rng(seed).multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples)
