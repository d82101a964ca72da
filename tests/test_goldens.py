"""jaxreflow against values that LeRobot computed (tests/goldens): parity without torch."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.parity.candidate import Candidate
from tests.parity.comparison import compare_losses_and_gradients, compare_network, compare_preparation
from tests.parity.inputs import Inputs
from tests.parity.report import QUANTITIES, number, relative_error

GOLDENS = Path(__file__).parent / "goldens"
NAMES = ("cross", "mixed", "aloha")
STEPS = (10,)
Arrays = dict[str, np.ndarray]


def within_bounds(quantity: str, found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    """Assert the bound of the parity table."""
    rule = QUANTITIES[quantity]
    error = relative_error(np.asarray(found), expected, rule.scale)
    assert error <= rule.bound, f"{quantity} {name}: error {number(error)} exceeds {number(rule.bound)}"


@functools.cache
def golden(name: str) -> tuple[Inputs, Arrays]:
    """Inputs and LeRobot's values."""
    with np.load(GOLDENS / name / "golden.npz") as archive:
        arrays = dict(archive)
    return Inputs.from_arrays(arrays), {key: value for key, value in arrays.items() if not key.startswith("inputs/")}


@functools.cache
def candidate(name: str, **options: str) -> Candidate:
    """The golden's checkpoint in jaxreflow."""
    return Candidate(GOLDENS / name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_preparation_equals_golden(name: str) -> None:
    inputs, expected = golden(name)
    compare_preparation(within_bounds, candidate(name).preparation(inputs), expected)


@pytest.mark.parametrize("name", NAMES)
def test_network_equals_golden(name: str) -> None:
    inputs, expected = golden(name)
    compare_network(within_bounds, candidate(name).network(inputs, expected, STEPS), expected)


@pytest.mark.parametrize("name", NAMES)
def test_chunk_equals_golden(name: str) -> None:
    inputs, expected = golden(name)
    within_bounds("chunk", candidate(name).chunk(inputs), expected["chunk_raw"])


@pytest.mark.parametrize("name", ["cross", "mixed"])
def test_losses_and_gradients_equal_golden(name: str) -> None:
    inputs, expected = golden(name)
    compare_losses_and_gradients(within_bounds, candidate(name).losses_and_gradients(inputs, expected), expected)


def test_shifted_positions_equal_golden() -> None:
    inputs, expected = golden("cross")
    found = candidate("cross", vision_positions="shifted").network(inputs, expected, STEPS)
    within_bounds("shifted_vision", found["vision/0"], expected["shifted/vision/0"])
    within_bounds("shifted_chunk", found["sample/10"], expected["shifted/sample/10"])
    with pytest.raises(AssertionError, match="shifted_chunk"):
        within_bounds("shifted_chunk", found["sample/10"], expected["sample/10"])


def test_bfloat16_compute_stays_near_golden() -> None:
    inputs, expected = golden("mixed")
    found = candidate("mixed", dtype="bfloat16").network(inputs, expected, STEPS)
    within_bounds("bfloat16_velocity", found["velocity"], expected["velocity"])
    within_bounds("bfloat16_chunk", found["sample/10"], expected["sample/10"])


def test_a_permuted_weight_is_noticed() -> None:
    inputs, expected = golden("cross")
    broken = Candidate(GOLDENS / "cross")
    broken.params = jax.tree.map(lambda leaf: leaf, broken.params)
    kernel = broken.params["expert"]["layers"]["1"]["self_attn"]["k_proj"]["kernel"]
    broken.params["expert"]["layers"]["1"]["self_attn"]["k_proj"]["kernel"] = kernel[:, ::-1]
    with pytest.raises(AssertionError, match="velocity"):
        compare_network(within_bounds, broken.network(inputs, expected, STEPS), expected)
