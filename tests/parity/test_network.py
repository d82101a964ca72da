"""The network against LeRobot's, from the same tokens and state: context, velocity, samples, loss, gradients."""

from collections.abc import Callable

import pytest

from tests.parity.candidate import Candidate
from tests.parity.case import Case
from tests.parity.comparison import compare_losses_and_gradients, compare_network
from tests.parity.conftest import Measure
from tests.parity.lerobot_shim import SHIFTS_FLOAT32_POSITIONS
from tests.parity.oracle import Oracle
from tests.parity.variants import VARIANTS

Cases = Callable[[str], Case]
Measuring = Callable[[str], Measure]
# Each number of steps is a compilation: sampled here where layers differ in kind and where they do not; `test_policy.py`
# takes ten steps with every variant.
SAMPLED = ("tiny", "self_attention")
# Normalisation is over before the network begins.
NETWORKS = [name for name, variant in VARIANTS.items() if variant.normalization == "MEAN_STD"]


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_lerobot(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    steps = (1, 2, 10) if name in SAMPLED else ()
    found = of.candidate.network(of.inputs, of.prepared, steps)
    assert {"key/0", "value/0", "velocity", *(f"sample/{count}" for count in steps)} <= set(found)
    compare_network(measuring(name), found, of.network)


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients_equal_lerobot(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    expected = {**of.oracle.loss_record(of.inputs), **of.gradients}
    found = of.candidate.losses_and_gradients(of.inputs, of.prepared)
    compare_losses_and_gradients(measuring(name), found, expected)


@pytest.mark.skipif(not SHIFTS_FLOAT32_POSITIONS, reason="this version of transformers has exact positions only")
@pytest.mark.parametrize("name", ["tiny", "mixed", "small_image", "grid_of_six"])
def test_shifted_positions_equal_lerobot_in_float32(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    expected = Oracle(of.checkpoint, positions="native").network(of.inputs)
    found = Candidate(of.checkpoint, vision_positions="shifted").network(of.inputs, of.prepared, steps=(10,))
    measure = measuring(name)
    for key in (key for key in found if key.startswith("vision/")):
        measure("shifted_vision", found[key], expected[key], key)
    measure("shifted_chunk", found["sample/10"], expected["sample/10"])
    moved = abs(expected["sample/10"] - of.network["sample/10"]).max() / abs(expected["sample/10"]).max()
    assert moved > 1e-2, f"the two kinds of position differ by {moved} only: this test would not tell them apart"


@pytest.mark.parametrize(
    "name", ["mixed_vlm"] if SHIFTS_FLOAT32_POSITIONS else ["mixed_vlm", "tiny", "mixed", "small_image", "grid_of_six"]
)
def test_native_positions_are_exact(name: str, case: Cases) -> None:
    """In bfloat16 under every transformers, from version 5 on in float32 as well."""
    of = case(name)
    exact = Oracle(of.checkpoint, cast=None).network(of.inputs)
    native = Oracle(of.checkpoint, cast=None, positions="native").network(of.inputs)
    assert (exact["sample/10"] == native["sample/10"]).all()


@pytest.mark.parametrize("name", ["tiny", "mixed_vlm", "self_attention", "special_tokens"])
def test_bfloat16_compute_stays_near_float32(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    found = Candidate(of.checkpoint, dtype="bfloat16").network(of.inputs, of.prepared, steps=(10,))
    measure = measuring(name)
    measure("bfloat16_velocity", found["velocity"], of.network["velocity"])
    measure("bfloat16_chunk", found["sample/10"], of.network["sample/10"])
