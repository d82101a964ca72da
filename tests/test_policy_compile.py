"""`SmolVLAPolicy.compile`: no action waits for the compiler, and none changes."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxreflow import SmolVLAPolicy
from jaxreflow.errors import ConfigError
from jaxreflow.model.types import Observation
from jaxreflow.policy.observation import Transforms, example_observation
from jaxreflow.support.compilation import CompileWatch

CROSS = Path(__file__).parent / "goldens" / "cross"
TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.fixture(scope="module")
def policy() -> SmolVLAPolicy:
    """Compiled for one step and one observation as config.json has it."""
    policy = SmolVLAPolicy.from_pretrained(CROSS)
    policy.compile(num_steps=1)
    return policy


def observation() -> dict:
    """One observation without a batch axis, as a robot gives it."""
    rng = np.random.default_rng(0)
    images = {key: rng.integers(0, 256, (*size, 3), np.uint8) for key, size in ((TOP, (24, 40)), (WRIST, (41, 33)))}
    return {**images, "observation.state": rng.normal(size=6).astype("f4"), "task": "open the drawer"}


def test_the_first_action_compiles_nothing(policy):
    with CompileWatch() as watch:
        first = policy.select_action(observation(), num_steps=1)
        noise = np.zeros((1, policy.config.chunk_size, policy.config.max_action_dim), np.float32)
        policy.predict_action_chunk(observation(), noise, num_steps=1)
        assert watch.programs == 0
        policy.predict_action_chunk(observation(), noise, num_steps=2)
        assert watch.programs == 1
    plain = SmolVLAPolicy.from_pretrained(CROSS)
    np.testing.assert_array_equal(first, plain.select_action(observation(), num_steps=1))


def test_the_program_of_compile_is_what_runs(policy, monkeypatch):
    expected = policy.predict_action_chunk(observation(), num_steps=1, key=jax.random.key(0))
    monkeypatch.setattr("jaxreflow.policy.sampling.sample_chunks", None)
    np.testing.assert_array_equal(policy.predict_action_chunk(observation(), None, 1, jax.random.key(0)), expected)
    with pytest.raises(TypeError, match="None"):
        policy.predict_action_chunk(observation(), num_steps=2)


def test_other_forms_compile_when_they_come(policy):
    plain = SmolVLAPolicy.from_pretrained(CROSS)
    noise = np.zeros((1, policy.config.chunk_size, policy.config.max_action_dim), np.float32)
    as_float = {**observation(), TOP: np.full((3, 24, 40), 0.5, np.float32)}
    one_camera = {key: value for key, value in observation().items() if key != WRIST}
    for other in (as_float, one_camera):
        chunks = [p.predict_action_chunk(other, noise, num_steps=1) for p in (policy, plain)]
        np.testing.assert_array_equal(*chunks)


def test_a_chosen_form_and_other_weights():
    policy = SmolVLAPolicy.from_pretrained(CROSS)
    assert policy.compile(1, batch_size=2, image_sizes={TOP: (20, 28)}) > 0
    two = {TOP: np.zeros((2, 20, 28, 3), np.uint8), "observation.state": np.zeros((2, 6), "f4"), "task": ["a", "b"]}
    with CompileWatch() as watch:
        first = policy.predict_action_chunk(two, num_steps=1)
        assert watch.programs == 0
    bias = policy.params["action_out_proj"]["bias"] + 1
    policy.params = {**policy.params, "action_out_proj": {**policy.params["action_out_proj"], "bias": bias}}
    assert not np.allclose(first, policy.predict_action_chunk(two, num_steps=1), atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "`num_steps`.*found 0"),
        ({"batch_size": 0}, "`batch_size`.*found 0"),
        ({"image_sizes": {"observation.images.tpo": (4, 4)}}, "tpo.*" + re.escape(TOP)),
        ({"image_sizes": {TOP: (4, 0)}}, r"`observation.images.top`.*\(height, width\).*\(4, 0\)"),
    ],
)
def test_wrong_forms_are_named(policy, arguments, message):
    with pytest.raises(ConfigError, match=message):
        policy.compile(**arguments)


def test_an_example_has_the_names_that_the_robot_gives(policy):
    transforms = policy.transforms
    processors = transforms.processors.with_rename_map({"cam": TOP, "qpos": "observation.state"})
    example = example_observation(Transforms(transforms.policy, processors, transforms.tokenizer), batch_size=2)
    assert {key: np.shape(value) for key, value in example.items()} == {
        "cam": (2, 24, 40, 3), WRIST: (2, 41, 33, 3), "qpos": (2, 6), "task": ()
    }  # fmt: skip
    assert isinstance(transforms.prepare(example_observation(transforms)), Observation)
