"""Rollouts in a toy environment: chunks, the order of seeds, and independence of the number of environments."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from jaxreflow.errors import ConfigError
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.policy.statistics import format_tensors
from jaxreflow.sim import closed_loop, environment
from jaxreflow.sim.closed_loop import SimConfig
from jaxreflow.sim.environment import ActionChunks, parse_env, policy_observation
from jaxreflow.sim.results import Result
from jaxreflow.sim.rollout import Query, episode_noise, rollout
from jaxreflow.sim.timing import HOLD, STOP, Timing
from jaxreflow.sim.video import replay
from tests.point_env import PointEnv

TEACHER = Path(__file__).parent / "assets" / "teacher"
CHUNK, WIDTH = 5, 3


def act(query: Query) -> np.ndarray:
    """Moves by a tenth, disturbed by the noise that it is given."""
    assert query.observation["task"] == ["Go to one"] * len(query.clock)
    return 0.1 + 0.1 * np.asarray(query.noise)[..., :1]


def run(
    environments: int, seeds: range, n_action_steps: int = 3, act: Any = act, also: tuple[str, ...] = (), **timing: Any
) -> Any:
    envs = SyncVectorEnv(
        [lambda: ActionChunks(PointEnv(), CHUNK)] * environments, autoreset_mode=AutoresetMode.DISABLED
    )
    timing_of_all = Timing(n_action_steps, **timing)
    return rollout(envs, act, "Go to one", seeds, timing_of_all, noise_shape=(CHUNK, WIDTH), also=also)


def test_outcomes_do_not_depend_on_how_many_environments_run() -> None:
    alone, several, many = (run(count, range(50, 61)) for count in (1, 4, 16))
    assert 0 < alone.success.sum() < 11
    for other in (several, many):
        np.testing.assert_array_equal(other.success, alone.success)
        np.testing.assert_array_equal(other.steps, alone.steps)
        np.testing.assert_array_equal(other.queries, alone.queries)


def test_what_else_an_environment_says_is_kept_by_episode() -> None:
    outcome = run(4, range(50, 61), also=("is_success",))
    np.testing.assert_array_equal(outcome.also["is_success"], outcome.success)
    assert run(4, range(50, 52)).also == {}


def test_each_seed_has_its_own_episode() -> None:
    whole, part = run(3, range(50, 61)), run(3, range(55, 58))
    np.testing.assert_array_equal(whole.steps[5:8], part.steps)
    assert len(set(whole.steps.tolist())) > 3


def test_queries_follow_from_executed_actions() -> None:
    for executed in (1, 5):
        outcome = run(4, range(50, 56), n_action_steps=executed)
        np.testing.assert_array_equal(outcome.queries, -(-outcome.steps // executed))


def test_failure_takes_all_steps() -> None:
    outcome = run(4, range(50, 80))
    assert (outcome.steps[~outcome.success] == 20).all()
    assert (outcome.steps[outcome.success] <= 20).all()


def test_noise_depends_on_seed_and_query_only() -> None:
    noise = np.asarray(episode_noise(np.array([7, 8, 7]), np.array([0, 0, 1]), (CHUNK, WIDTH)))
    again = np.asarray(episode_noise(np.array([7]), np.array([1]), (CHUNK, WIDTH)))
    np.testing.assert_array_equal(noise[2], again[0])
    assert not np.allclose(noise[0], noise[1])
    assert not np.allclose(noise[0], noise[2])


def test_only_the_last_step_of_a_chunk_is_pictured() -> None:
    env = ActionChunks(PointEnv(), CHUNK)
    env.reset(seed=0)
    env.step(np.full((4, 1), 0.01))
    assert env.unwrapped.pictures == 2
    assert env.unwrapped.renders


def test_chunk_ends_with_the_episode() -> None:
    env = ActionChunks(PointEnv(), CHUNK)
    env.reset(seed=0)
    *_, terminated, _, info = env.step(np.full((4, 1), 0.8))
    assert terminated
    assert (info["is_success"], info["steps"], info["held"]) == (True, 2, 0)
    np.testing.assert_array_equal(info["commands"], [[0.8], [0.8], [np.nan], [np.nan]])
    assert (np.isnan(info["positions"][:, 0]) == [False, False, True, True]).all()


def test_a_chunk_holds_and_stops() -> None:
    env = ActionChunks(PointEnv(), CHUNK)
    start, _ = env.reset(seed=0)
    observation, *_, info = env.step(np.array([[HOLD], [0.1], [HOLD], [STOP], [STOP]]))
    assert (info["steps"], info["held"], env.unwrapped.pictures) == (3, 2, 2)
    np.testing.assert_allclose(observation["agent_pos"], start["agent_pos"] + 0.1)
    np.testing.assert_array_equal(info["commands"][:3], [[0.0], [0.1], [0.0]])


def test_observations_get_the_names_that_policies_know() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    one = policy_observation({"pixels": image, "agent_pos": np.zeros((1, 4))}, "Wait")
    assert list(one) == ["observation.image", "observation.state", "task"]
    two = policy_observation({"pixels": {"top": image, "wrist": image}, "agent_pos": np.zeros((1, 4))}, "Wait")
    assert list(two)[:2] == ["observation.images.top", "observation.images.wrist"]


class TwoCameras(PointEnv):
    """Seen by two cameras; made as the environments of the product are."""

    def __init__(self, task: str, render: str, size: int, max_steps: int) -> None:
        super().__init__(max_steps)
        del task, render, size
        spaces = self.observation_space.spaces
        both = gymnasium.spaces.Dict({"front": spaces["pixels"], "wrist": spaces["pixels"]})
        self.observation_space = gymnasium.spaces.Dict({**spaces, "pixels": both})

    def _observe(self) -> dict[str, Any]:
        observation = super()._observe()
        front = observation["pixels"]
        return {**observation, "pixels": {"front": front, "wrist": front + 9}}


def test_replay_shows_all_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment.ENVIRONMENTS, "point", "tests.test_sim_rollout:TwoCameras")
    seen = []

    def predict(observation: dict[str, Any], noise: Any, num_steps: int) -> np.ndarray:
        seen.append((sorted(observation), num_steps))
        return 0.1 + 0.1 * np.asarray(noise)[..., :1]

    policy = Mock(SmolVLAPolicy, predict_action_chunk=predict)
    policy.config = SimpleNamespace(chunk_size=CHUNK, max_action_dim=WIDTH)
    result = Result(
        policy="point", sha256="", num_steps=2, n_action_steps=3, env="point", task="any",
        options={"render": "fast", "size": 8, "max_steps": 20}, seed=50, episodes=1, success=(0,), steps=(20,),
    )  # fmt: skip
    frames, success = replay(result, policy, 50, None)
    alone = run(1, range(50, 51))
    assert (len(frames) - 1, success) == (alone.steps[0], alone.success[0])
    assert {frame.shape for frame in frames} == {(2, 4, 3)}
    assert [frames[0][0, column, 0] for column in (0, 3)] == [0, 9]
    cameras = ["observation.images.front", "observation.images.wrist", "observation.state", "task"]
    assert seen == [(cameras, 2)] * alone.queries[0]


@pytest.mark.parametrize("spec", ["metaworld", "metaworld:", "metaworld:a,,b", "nowhere:a"])
def test_unknown_environment_is_named(spec: str) -> None:
    with pytest.raises(ConfigError, match="NAME:TASK"):
        parse_env(spec)


def test_statistics_of_a_file_replace_the_policys_own_and_make_other_results(tmp_path: Path) -> None:
    plain = SimConfig((str(TEACHER),), "metaworld:reach-v3", num_steps=(1,))
    (own,) = closed_loop._load(plain).values()
    stats, file = own.checkpoint.processors.normalizer.stats, tmp_path / "stats.safetensors"
    action = stats["action"]
    file.write_bytes(format_tensors({**stats, "action": {**action, "std": 2 * action["std"]}}))
    config = dataclasses.replace(plain, stats_from=str(file))
    policies = closed_loop._load(config)
    normalized = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    before, after = (p.transforms.unnormalize_action(normalized) for p in (own, *policies.values()))
    np.testing.assert_allclose(after - action["mean"], 2 * (before - action["mean"]), rtol=1e-4, atol=1e-6)  # float32
    # A results file of the policy's own statistics, or of another file's, is not taken for these.
    first, second = (closed_loop._plan(c, policies) for c in (plain, config))
    file.write_bytes(format_tensors(stats))
    third = closed_loop._plan(config, policies)
    assert len({result.identity for result in (*first, *second, *third)}) == 3
    assert "stats_from" not in first[0].options
