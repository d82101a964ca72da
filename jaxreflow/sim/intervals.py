"""Success rates of policies on the same episodes: intervals for each, and for the difference of two."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy import stats


class Interval(NamedTuple):
    """An estimate with its confidence limits."""

    value: float
    low: float
    high: float


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """A success rate with Wilson's score interval."""
    limits = stats.binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return Interval(successes / episodes, float(limits.low), float(limits.high))


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> float:
    """McNemar's exact two-sided p-value that both succeed equally often, from the episodes in which they differ."""
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(~first & second))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def paired_difference(
    first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"], confidence: float = 0.95
) -> Interval:
    """Rate of `second` less rate of `first` on the same episodes, by Newcombe's method 10.

    Wilson's limits of both rates, joined under their correlation phi, which is corrected for continuity (R. G. Newcombe,
    Statistics in Medicine 17, 2635, 1998). A confidence of 0.90 gives the one-sided 95 % bounds.
    """
    n = len(first)
    both, neither = int(np.sum(first & second)), int(np.sum(~first & ~second))
    a, b = wilson(int(second.sum()), n, confidence), wilson(int(first.sum()), n, confidence)
    phi = _correlation(both, int(np.sum(second & ~first)), int(np.sum(first & ~second)), neither)
    difference = a.value - b.value

    def reach(own: float, other: float) -> float:
        return math.sqrt(max(own**2 - 2 * phi * own * other + other**2, 0.0))

    low = difference - reach(a.value - a.low, b.high - b.value)
    high = difference + reach(a.high - a.value, b.value - b.low)
    return Interval(difference, low, high)


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if not margins:
        return 0.0
    product = both * neither - only_a * only_b
    correction = (both + only_a + only_b + neither) / 2
    return (max(product - correction, 0.0) if product > 0 else product) / math.sqrt(margins)
