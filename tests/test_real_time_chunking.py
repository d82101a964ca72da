"""Real-time chunking: the guided field and its weights by hand, and a policy whose next chunk agrees with the last one."""

import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow import SmolVLAPolicy, flow
from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.policy.real_time_chunking import prefix_weights
from jaxreflow.policy.saved import load_saved_policy, student_policy
from tests.test_policy import golden_observation

GOLDENS = Path(__file__).parent / "goldens"


def sampled(num_steps: int, max_weight: float) -> float:
    """Where a straight field from noise 3 to action 1 ends if it is guided towards 2 with full weight."""
    guidance = flow.Guidance(jnp.full((1, 1), 2.0), jnp.ones(1), jnp.float32(max_weight))

    def velocity(x: jnp.ndarray, t: jnp.ndarray) -> jnp.ndarray:
        return (x - 1.0) / t[..., None, None]

    return float(flow.euler(flow.guide(velocity, guidance), jnp.full((1, 1), 3.0), num_steps)[0, 0])


def test_one_step_lands_on_the_chunk_before_with_weight_one_and_nine_times_as_far_off_with_ten() -> None:
    assert sampled(1, 1.0) == pytest.approx(2.0)
    assert sampled(1, 10.0) == pytest.approx(2.0 + 9.0 * (2.0 - 1.0))


def test_two_steps_land_on_the_chunk_before() -> None:
    assert sampled(2, 10.0) == pytest.approx(2.0)
    assert sampled(2, 2.0) == pytest.approx(2.0)


def test_ten_steps_by_lerobots_formula() -> None:
    """Step by step in Python's numbers; the strength is (1 - tau) / tau times ((1 - tau)^2 + tau^2) / (1 - tau)^2, tau = 1 - t."""
    x, strengths = 3.0, []
    for step in range(10):
        t = 1.0 - step / 10
        tau = 1.0 - t
        strength = 10.0 if tau == 0 else min((1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2, 10.0)
        v = (x - 1.0) / t
        x -= (v - strength * (2.0 - (x - t * v))) / 10
        strengths.append(strength)
    np.testing.assert_allclose(strengths[:6], [10, 9.11, 4.25, 2.76, 2.17, 2], atol=5e-3)
    assert sampled(10, 10.0) == pytest.approx(x, rel=1e-5)


WEIGHTS = {
    "linear": [1, 1, 3 / 4, 1 / 2, 1 / 4, 0],
    "exp": [1, 1, *(w * (math.exp(w) - 1) / (math.e - 1) for w in (3 / 4, 1 / 2, 1 / 4)), 0],
    "ones": [1, 1, 1, 1, 1, 0],
    "zeros": [1, 1, 0, 0, 0, 0],
}


@pytest.mark.parametrize("schedule", WEIGHTS)
def test_weights_of_every_schedule(schedule: str) -> None:
    for name in (schedule, schedule.upper()):
        np.testing.assert_allclose(prefix_weights(2, 5, 6, name), WEIGHTS[schedule], rtol=1e-6)


def test_weights_at_the_ends() -> None:
    np.testing.assert_array_equal(prefix_weights(3, 3, 4, "linear"), [1, 1, 1, 0])
    np.testing.assert_array_equal(prefix_weights(0, 0, 3, "linear"), [0, 0, 0])
    np.testing.assert_allclose(prefix_weights(1, 9, 3, "linear"), [1, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(prefix_weights(5, 9, 3, "zeros"), [1, 1, 1])


@pytest.fixture(scope="module", params=["cross", "aloha"])
def robot(request: pytest.FixtureRequest) -> tuple[SmolVLAPolicy, dict, np.ndarray, np.ndarray]:
    """A policy, an observation, the end of a chunk that its robot still executes, and the noise of the next one."""
    policy = SmolVLAPolicy.from_pretrained(GOLDENS / request.param)
    observation, golden = golden_observation(request.param)
    before = policy.predict_action_chunk(observation, golden["inputs/noise"][0], num_steps=1)
    return policy, observation, before, golden["inputs/noise"][1]


def largest(chunk: np.ndarray) -> float:
    return float(np.abs(chunk).max())


def test_the_first_actions_are_those_on_their_way_and_the_last_are_free(robot) -> None:
    policy, observation, left_over, noise = robot
    free = policy.predict_action_chunk(observation, noise, num_steps=1)
    for steps in (1, 2):
        chunk = policy.predict_action_chunk(
            observation, noise, steps, prev_chunk_left_over=left_over, inference_delay=2, execution_horizon=3
        )
        np.testing.assert_allclose(chunk[:, :2], left_over[:, :2], rtol=1e-3, atol=1e-4)
        if steps == 1:
            np.testing.assert_allclose(chunk[:, 2], (free[:, 2] + left_over[:, 2]) / 2, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(chunk[:, 3:], free[:, 3:], rtol=1e-4, atol=1e-5)


def test_the_default_weight_is_at_most_the_number_of_steps_and_a_given_one_is_taken(robot) -> None:
    policy, observation, left_over, noise = robot
    call = {"prev_chunk_left_over": left_over, "inference_delay": 2}
    one = policy.predict_action_chunk(observation, noise, 1, **call)
    np.testing.assert_array_equal(
        one, policy.predict_action_chunk(observation, noise, 1, max_guidance_weight=1.0, **call)
    )
    ten = policy.predict_action_chunk(observation, noise, 1, max_guidance_weight=10.0, **call)
    free = policy.predict_action_chunk(observation, noise, 1)
    normal = policy.transforms.normalize_action
    gap = normal(left_over[:, :2]) - normal(free[:, :2])
    np.testing.assert_allclose(normal(ten[:, :2]) - normal(left_over[:, :2]), 9 * gap, rtol=2e-3, atol=2e-3)


def test_defaults_are_those_of_the_checkpoint(robot) -> None:
    policy, observation, left_over, noise = robot
    rtc = {"enabled": True, "execution_horizon": 3, "prefix_attention_schedule": "ONES", "max_guidance_weight": 0.5}
    config = dataclasses.replace(policy.config, carried={**policy.config.carried, "rtc_config": rtc})
    transforms = dataclasses.replace(policy.transforms, policy=config)
    other = SmolVLAPolicy(policy.checkpoint, policy.params, transforms)
    found = other.predict_action_chunk(observation, noise, 2, prev_chunk_left_over=left_over)
    expected = policy.predict_action_chunk(
        observation, noise, 2, prev_chunk_left_over=left_over,
        execution_horizon=3, prefix_attention_schedule="ones", max_guidance_weight=0.5,
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected)
    broken = dataclasses.replace(config, carried={**config.carried, "rtc_config": {"max_guidance_weight": "ten"}})
    bad = SmolVLAPolicy(policy.checkpoint, policy.params, dataclasses.replace(transforms, policy=broken))
    with pytest.raises(ConfigError, match=r"`rtc_config`: `max_guidance_weight`: expected a number, found 'ten'"):
        bad.predict_action_chunk(observation, noise, 2, prev_chunk_left_over=left_over)


@pytest.mark.parametrize(("before", "after"), [(10.0, 2.0), (1.5, 1.5), (None, None)])
def test_a_students_config_has_a_weight_of_at_most_its_steps(before: float | None, after: float | None) -> None:
    policy = load_saved_policy(GOLDENS / "cross").policy
    rtc = None if before is None else {"enabled": True, "max_guidance_weight": before}
    teacher = dataclasses.replace(policy, carried={**policy.carried, "rtc_config": rtc})
    expected = None if after is None else {"enabled": True, "max_guidance_weight": after}
    assert student_policy(teacher, 2).to_json()["rtc_config"] == expected
    assert student_policy(teacher).to_json()["rtc_config"] == rtc


def test_one_left_over_is_for_every_robot_of_a_batch_and_an_empty_one_guides_nothing(robot) -> None:
    policy, observation, left_over, noise = robot
    first = policy.predict_action_chunk(observation, noise, 1, prev_chunk_left_over=left_over[0], inference_delay=1)
    for chunk in first:
        np.testing.assert_allclose(chunk[0], left_over[0, 0], rtol=1e-3, atol=1e-4)
    none = policy.predict_action_chunk(observation, noise, 1, prev_chunk_left_over=left_over[:, :0])
    np.testing.assert_allclose(none, policy.predict_action_chunk(observation, noise, 1), rtol=1e-5, atol=1e-6)


def test_select_action_refills_its_queue_with_a_guided_chunk(robot) -> None:
    policy, observation, left_over, noise = robot
    policy.reset()
    action = policy.select_action(observation, noise, 1, prev_chunk_left_over=left_over, inference_delay=1)
    policy.reset()
    np.testing.assert_allclose(action, left_over[:, 0], rtol=1e-3, atol=1e-4)


def test_a_guided_sampler_can_be_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SmolVLAPolicy.from_pretrained(GOLDENS / "cross")
    observation, golden = golden_observation("cross")
    noise = golden["inputs/noise"][0]
    left_over = np.zeros((2, 3, policy.config.action_dim), np.float32)
    expected = policy.predict_action_chunk(observation, noise, 1, prev_chunk_left_over=left_over, inference_delay=2)
    sizes = {key: observation[key].shape[1:3] for key in policy.config.camera_keys}
    policy.compile(1, 2, sizes, guided=True)
    monkeypatch.setattr("jaxreflow.policy.sampling.sample_chunks", None)
    found = policy.predict_action_chunk(observation, noise, 1, prev_chunk_left_over=left_over, inference_delay=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prev_chunk_left_over": np.zeros((7, 6))}, ProcessorError, r"expected \[T, 6\] or \[2, T, 6\] with at most 6 actions"),
        ({"prev_chunk_left_over": np.zeros((2, 4, 3))}, ProcessorError, r"found \[2, 4, 3\]; give the end of a chunk"),
        ({"prev_chunk_left_over": np.zeros((3, 4, 6))}, ProcessorError, r"found \[3, 4, 6\]"),
        ({"prev_chunk_left_over": [[0, 0, 0, 0, 0, math.nan]]}, ProcessorError, r"not finite in the action\(s\) \[0\]"),
        ({"prev_chunk_left_over": "left"}, ProcessorError, "cannot be read as an array"),
        ({"inference_delay": 11}, ConfigError, r"`inference_delay`: expected 0 to `execution_horizon` \(10\) actions, found 11"),
        ({"inference_delay": -1}, ConfigError, "found -1"),
        ({"max_guidance_weight": 0.0}, ConfigError, "`max_guidance_weight`: expected a positive number, found 0.0"),
        ({"max_guidance_weight": math.nan}, ConfigError, "found nan"),
        ({"prefix_attention_schedule": "cubic"}, ConfigError, "expected one of linear, exp, ones, zeros, found 'cubic'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(changes: dict, error: type[Exception], message: str) -> None:
    policy = SmolVLAPolicy.from_pretrained(GOLDENS / "cross")
    observation, _ = golden_observation("cross")
    arguments = {"prev_chunk_left_over": np.zeros((2, 4, policy.config.action_dim)), **changes}
    with pytest.raises(error, match=message):
        policy.predict_action_chunk(observation, **arguments)
