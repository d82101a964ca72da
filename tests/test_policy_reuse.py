"""One look for several chunks: newer states on older images, and the best of many candidates."""

import copy
import re

import jax
import numpy as np
import pytest

from jaxreflow import SmolVLAPolicy
from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.policy.candidates import choose
from jaxreflow.support.compilation import CompileWatch
from tests.test_policy_compile import CROSS, TOP, WRIST, observation

STATE = "observation.state"


@pytest.fixture(scope="module")
def policy() -> SmolVLAPolicy:
    """A policy of two cameras."""
    return SmolVLAPolicy.from_pretrained(CROSS)


def noise(policy: SmolVLAPolicy, *outer: int) -> np.ndarray:
    shape = (*outer, policy.config.chunk_size, policy.config.max_action_dim)
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def test_a_context_and_its_own_state_give_the_chunk_of_the_whole_observation(policy):
    seen = policy.observe(observation())
    assert (seen.batch_size, seen.tasks) == (1, ("open the drawer",))
    for steps in (1, 3):
        whole = policy.predict_action_chunk(observation(), noise(policy, 1), steps)
        state = {STATE: observation()[STATE]}
        for given in (observation(), state):
            part = policy.predict_action_chunk(given, noise(policy, 1), steps, context=seen)
            np.testing.assert_allclose(part, whole, atol=1e-5)


def test_a_newer_state_counts_and_newer_images_do_not(policy):
    seen = policy.observe(observation())
    newer = {**observation(), STATE: observation()[STATE] + 0.5, TOP: 255 - observation()[TOP]}
    expected = policy.predict_action_chunk({**newer, TOP: observation()[TOP]}, noise(policy, 1), 1)
    found = policy.predict_action_chunk(newer, noise(policy, 1), 1, context=seen)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, policy.predict_action_chunk(observation(), noise(policy, 1), 1), atol=1e-3)


def test_robots_of_a_batch_look_at_different_times(policy):
    first, second = ({**observation(), TOP: np.full((24, 40, 3), shade, np.uint8)} for shade in (0, 200))

    def both(*parts: dict) -> dict:
        return {key: [p[key] for p in parts] if key == "task" else np.stack([p[key] for p in parts]) for key in first}

    old, new = policy.observe(both(first, first)), policy.observe(both(second, second))
    mixed = old.with_rows(np.array([False, True]), new)
    found = policy.predict_action_chunk(both(first, first), noise(policy, 2), 1, context=mixed)
    np.testing.assert_allclose(found, policy.predict_action_chunk(both(first, second), noise(policy, 2), 1), atol=1e-5)


def test_a_context_of_something_else_is_named(policy):
    seen = policy.observe(observation())
    other = SmolVLAPolicy.from_pretrained(CROSS)
    with pytest.raises(ConfigError, match="found another policy's"):
        other.predict_action_chunk(observation(), context=seen)
    with pytest.raises(ConfigError, match="found another policy's"):
        other.observe(observation()).with_rows(np.array([True]), seen)
    old = other.observe(observation())
    other.params = other.params
    with pytest.raises(ConfigError, match=r"present `params`.*call `observe` again"):
        other.predict_action_chunk(observation(), context=old)
    other.predict_action_chunk(observation(), context=other.observe(observation()))
    with pytest.raises(ConfigError, match="found another policy's context, or a copy of one"):
        policy.predict_action_chunk(observation(), context=copy.deepcopy(seen))
    with pytest.raises(ConfigError, match="`context`: expected what `observe` returned, found dict"):
        # As users call it: in tests all arguments' types are checked before.
        SmolVLAPolicy.predict_action_chunk.__wrapped__(policy, observation(), context=observation())
    with pytest.raises(ConfigError, match=r"`rows`: expected shape \[1\], found \[2\]"):
        seen.with_rows(np.array([True, False]), seen)
    two = {STATE: np.zeros((2, 6), np.float32)}
    with pytest.raises(ConfigError, match=r"expected 2 observation\(s\), as in `observation.state`, found 1"):
        policy.predict_action_chunk(two, context=seen)
    with pytest.raises(ConfigError, match=r"expected the task \['open the drawer'\].*found \['close it'\]"):
        policy.predict_action_chunk({**observation(), "task": "close it"}, context=seen)
    with pytest.raises(ProcessorError, match=r"`observation.state` is missing"):
        policy.predict_action_chunk({"task": "open the drawer"}, context=seen)


def test_the_nearest_to_the_left_over_is_chosen_and_the_medoid_without_one():
    chunks = np.array([[0.0, 1.0, 1.2, 5.0], [0.0, 1.0, 1.2, 5.0], [0.0, 1.0, 1.2, 5.0]])[..., None, None]
    chunks = np.tile(chunks, (1, 1, 3, 2))
    left_over = [np.full((2, 2), 4.0), np.full((1, 2), 0.4), np.zeros((0, 2))]
    np.testing.assert_array_equal(choose(chunks, left_over), [3, 0, 1])
    # Sums of distances: 7.2, 5.2, 5.2 (the first of equals), 12.8.
    np.testing.assert_array_equal(choose(chunks), [1, 1, 1])


def test_only_the_actions_that_both_chunks_have_are_compared():
    chunks = np.zeros((1, 2, 4, 1))
    chunks[0, 0, 2:] = 9.0
    chunks[0, 1] = 0.1
    np.testing.assert_array_equal(choose(chunks, [np.zeros((2, 1))]), [0])
    # 0.01 (1 + 1/2 + 1/4) against 81 / 4.
    np.testing.assert_array_equal(choose(chunks, [np.zeros((3, 1))]), [1])


def test_the_next_action_counts_twice_as_much_as_the_one_after_it():
    chunks = np.zeros((1, 2, 2, 1))
    chunks[0, 0, 0], chunks[0, 1, 1] = 1.0, 1.3
    np.testing.assert_array_equal(choose(chunks, [np.zeros((2, 1))]), [1])
    chunks[0, 1, 1] = 1.5
    np.testing.assert_array_equal(choose(chunks, [np.zeros((2, 1))]), [0])


def test_a_candidate_is_one_of_the_policys_own_chunks(policy):
    draws = noise(policy, 1, 5)
    single = np.concatenate([policy.predict_action_chunk(observation(), draws[:, i], 1) for i in range(5)])
    normal = policy.transforms.normalize_action
    left_over = single[3, 2:] + 1e-3
    for seen in (None, policy.observe(observation())):
        call = {"noise": draws, "num_steps": 1, "candidates": 5, "context": seen}
        found = policy.predict_action_chunk(observation(), **call, prev_chunk_left_over=left_over)
        index = choose(normal(single)[None], [normal(left_over)])[0]
        np.testing.assert_allclose(found[0], single[index], atol=1e-5)
        medoid = policy.predict_action_chunk(observation(), **call)
        np.testing.assert_allclose(medoid[0], single[choose(normal(single)[None])[0]], atol=1e-5)


def test_select_action_compares_with_the_rest_of_its_own_chunk(policy):
    executed = policy.config.n_action_steps
    policy.reset()
    keys = jax.random.split(jax.random.key(3), 2)
    first = policy.predict_action_chunk(observation(), key=keys[0], num_steps=1, candidates=4)
    rest = first[:, executed:] if executed < policy.config.chunk_size else None
    second = policy.predict_action_chunk(
        observation(), key=keys[1], num_steps=1, candidates=4, prev_chunk_left_over=rest
    )
    actions = [
        policy.select_action(observation(), key=keys[i // executed], num_steps=1, candidates=4)
        for i in range(2 * executed)
    ]
    np.testing.assert_allclose(np.stack(actions[:executed], 1), first[:, :executed], atol=1e-6)
    np.testing.assert_allclose(np.stack(actions[executed:], 1), second[:, :executed], atol=1e-6)
    policy.reset()
    assert policy._left_over is None


def test_programs_of_both_kinds_compile_ahead_of_time():
    policy = SmolVLAPolicy.from_pretrained(CROSS)
    policy.compile(num_steps=1, candidates=3, separate=True)
    with CompileWatch() as watch:
        seen = policy.observe(observation())
        policy.predict_action_chunk(observation(), num_steps=1, candidates=3, context=seen)
        assert watch.programs == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"candidates": 0}, ConfigError, "`candidates`: expected a whole number of at least 1, found 0"),
        ({"candidates": True}, ConfigError, "found True"),
        (
            {"candidates": 2, "execution_horizon": 3},
            ConfigError,
            "`execution_horizon`: expected none with `candidates`",
        ),
        ({"candidates": 10**20}, ConfigError, "`candidates`: 100000000000000000000 need .* GiB, the device has"),
        ({"candidates": 10**9}, ConfigError, "`candidates`: 1000000000 need .* GiB, the device has"),
        ({"candidates": 2, "noise": np.zeros((1, 6, 32))}, ProcessorError, re.escape("expected shape [1, 2, 6, 32]")),
        ({"prev_chunk_left_over": [np.zeros((2, 6))] * 3}, ProcessorError, "a list of 1 arrays.*found 3"),
    ],
)
def test_what_cannot_be_is_named(policy, arguments, error, message):
    with pytest.raises(error, match=message):
        policy.predict_action_chunk(observation(), num_steps=1, **arguments)
    with pytest.raises(ConfigError, match="`guided`: expected False with `candidates`"):
        policy.compile(guided=True, candidates=2)


def test_left_overs_of_different_lengths_are_each_robots_own(policy):
    two = {TOP: np.stack([observation()[TOP]] * 2), WRIST: np.stack([observation()[WRIST]] * 2)}
    two |= {STATE: np.stack([observation()[STATE]] * 2), "task": "open the drawer"}
    rows = [np.full((4, 6), 0.3, np.float32), np.zeros((0, 6), np.float32)]
    found = policy.predict_action_chunk(two, noise(policy, 2), 1, prev_chunk_left_over=rows, inference_delay=2)
    for i, row in enumerate(rows):
        alone = policy.predict_action_chunk(
            observation(), noise(policy, 2)[i : i + 1], 1, prev_chunk_left_over=row, inference_delay=2
        )
        np.testing.assert_allclose(found[i], alone[0], atol=1e-5)


def test_memory_that_others_have_taken_is_named(policy, monkeypatch):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 11016008772 bytes.")

    monkeypatch.setattr(policy._programs, "run", fails)
    with pytest.raises(ConfigError, match="`candidates`: 4 need more memory than is free; give fewer"):
        policy.predict_action_chunk(observation(), num_steps=1, candidates=4)
    with pytest.raises(jax.errors.JaxRuntimeError):
        policy.predict_action_chunk(observation(), num_steps=1)


def test_parameters_of_another_network_are_refused_and_change_nothing():
    policy = SmolVLAPolicy.from_pretrained(CROSS)
    before = policy.params
    with pytest.raises(
        ConfigError, match=r"`params`: .*: expected .*, found none; give all of this network's parameters"
    ):
        policy.params = {"state_proj": before["state_proj"]}
    wrong = {**before, "state_proj": jax.tree.map(lambda leaf: leaf[..., :1], before["state_proj"])}
    with pytest.raises(ConfigError, match=r"`params`: state_proj/bias: expected \[\d+\], found \[1\]"):
        policy.params = wrong
    assert policy.params is before
    policy.params = jax.tree.map(np.asarray, before)
