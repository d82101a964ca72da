"""Intervals for success rates and their differences."""

import numpy as np
import pytest

from jaxreflow.sim.intervals import mcnemar, paired_difference, wilson


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.repeat([True, True, False, False], (both, only_first, only_second, neither))
    second = np.repeat([True, False, True, False], (both, only_first, only_second, neither))
    return first, second


def test_wilson_interval_of_half() -> None:
    # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with p = 1/2, n = 20, z = 1.96
    assert wilson(10, 20) == pytest.approx((0.5, 0.2993, 0.7007), abs=1e-4)


def test_wilson_interval_of_none_and_all_stays_inside() -> None:
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0


def test_mcnemar_is_a_sign_test_of_the_discordant_pairs() -> None:
    # 2 * (C(10, 0) + C(10, 1)) / 2^10
    assert mcnemar(*outcomes(30, 1, 9, 5)) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(*outcomes(30, 0, 0, 5)) == 1.0


def test_difference_of_the_approval_ratings_in_agresti() -> None:
    # Agresti, Categorical Data Analysis, table 10.1: 794, 150, 86, 570 of 1,600; the 95 % interval is (0.020, 0.059) there.
    difference = paired_difference(*outcomes(794, 150, 86, 570))
    assert difference == pytest.approx((-0.04, -0.059, -0.020), abs=1.5e-3)


def test_difference_is_antisymmetric() -> None:
    first, second = outcomes(20, 3, 8, 9)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there == pytest.approx((-back.value, -back.high, -back.low))


def test_pairing_narrows_the_interval() -> None:
    correlated = paired_difference(*outcomes(45, 5, 5, 45))
    independent = paired_difference(*outcomes(25, 25, 25, 25))
    assert correlated.high - correlated.low < 0.6 * (independent.high - independent.low)


def test_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        cell = random.choice(4, size=60, p=(0.5, 0.2, 0.1, 0.2))
        interval = paired_difference(cell <= 1, (cell == 0) | (cell == 2))
        covered.append(interval.low <= -0.1 <= interval.high)
    assert 0.92 <= np.mean(covered) <= 0.99
