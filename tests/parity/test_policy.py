"""The policy against LeRobot's: pre- and postprocessing, the action chunk, the queue of actions."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.parity.case import Case
from tests.parity.comparison import compare_preparation
from tests.parity.conftest import Measure
from tests.parity.variants import VARIANTS

Cases = Callable[[str], Case]
Measuring = Callable[[str], Measure]


@pytest.mark.parametrize("name", VARIANTS)
def test_preparation_equals_lerobot(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    compare_preparation(measuring(name), of.candidate.preparation(of.inputs), of.prepared)


@pytest.mark.parametrize("name", VARIANTS)
def test_chunk_equals_lerobot(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    measuring(name)("chunk", of.candidate.chunk(of.inputs), of.oracle.chunk(of.inputs)["chunk_raw"])


def test_float_images_give_the_same_chunk_as_bytes(case: Cases) -> None:
    of = case("tiny")
    observation = of.candidate.raw_observation(of.inputs)
    observation |= {k: np.moveaxis(image.astype(np.float32) / 255, -1, 1) for k, image in of.inputs.images.items()}
    found = of.candidate.policy.predict_action_chunk(observation, noise=of.inputs.noise[0], num_steps=10)
    np.testing.assert_allclose(found, of.oracle.chunk(of.inputs)["chunk_raw"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "chunk_1", "aloha"])
def test_selected_actions_equal_lerobot(name: str, case: Cases, measuring: Measuring) -> None:
    of = case(name)
    policy, measure = of.candidate.policy, measuring(name)
    policy.reset()
    expected = of.oracle.selected(of.inputs, count=policy.config.n_action_steps + 2)
    for step, action in enumerate(expected):
        noise = of.inputs.noise[step // policy.config.n_action_steps]
        found = policy.select_action(of.candidate.raw_observation(of.inputs), noise=noise)
        measure("chunk", found, action, f"action {step}")
