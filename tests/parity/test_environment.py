"""jaxreflow's stock pictures and steps against LeRobot's environments: Meta-World, and Aloha's TransferCube."""

import numpy as np
import pytest

from jaxreflow.sim import aloha
from jaxreflow.sim.environment import policy_observation
from jaxreflow.sim.metaworld import MetaWorldEnv
from tests.parity.lerobot_shim import IS_0_6, upstream_warnings_ignored

TASK = "button-press-topdown-v3"


def test_stock_observations_equal_lerobots() -> None:
    with upstream_warnings_ignored():
        from lerobot.envs.metaworld import MetaworldEnv

        upstream = MetaworldEnv(TASK, obs_type="pixels_agent_pos")
    if hasattr(upstream, "_ensure_env"):
        upstream._ensure_env()  # 0.6 makes the simulator when it is first needed.
    # LeRobot leaves the layout to numpy's global generator; here both draw it from the episode's seed.
    upstream._env.seeded_rand_vec = True
    own = MetaWorldEnv(TASK, render="stock")
    try:
        assert own.task_description == upstream.task_description
        upstream._env.seed(5)
        pairs = [(own.reset(seed=5)[0], upstream.reset(seed=5)[0])]
        random = np.random.default_rng(0)
        for _ in range(12):
            action = random.uniform(-1, 1, 4).astype(np.float32)
            found, reward, ended, _, info = own.step(action)
            expected, upstream_reward, upstream_ended, _, upstream_info = upstream.step(action)
            assert reward == pytest.approx(upstream_reward)
            assert (ended, info["is_success"]) == (upstream_ended, upstream_info["is_success"])
            pairs.append((found, expected))
        for found, expected in pairs:
            np.testing.assert_array_equal(found["agent_pos"], expected["agent_pos"])
            np.testing.assert_array_equal(found["pixels"], expected["pixels"])
    finally:
        own.close()
        upstream.close()


def test_aloha_is_what_lerobots_policies_see() -> None:
    """Pictures, state, task, reward and success, under the names that `lerobot-eval` gives to a policy."""
    with upstream_warnings_ignored():
        from lerobot.envs.configs import AlohaEnv
        from lerobot.envs.factory import make_env
        from lerobot.envs.utils import preprocess_observation

        settings = AlohaEnv(task="AlohaTransferCube-v0")
        upstream = make_env(settings)["aloha"][0]
    own = aloha.AlohaEnv(aloha.TASK, render="stock")
    assert (settings.fps, settings.episode_length) == (own.metadata["render_fps"], own.default_max_steps)
    told = aloha.INSTRUCTIONS[0 if IS_0_6 else 1]
    random = np.random.default_rng(0)
    try:
        with upstream_warnings_ignored():
            pairs = [(own.reset(seed=5)[0], upstream.reset(seed=[5])[0])]
            for _ in range(3):
                action = own.hold() + random.uniform(-0.05, 0.05, 14)
                found, reward, ended, _, info = own.step(action)
                expected, upstream_reward, upstream_ended, _, _ = upstream.step(action[None])
                assert (reward, ended, info["is_success"]) == (upstream_reward[0], upstream_ended[0], False)
                pairs.append((found, expected))
        # LeRobot 0.6 tells the policy its environment's `task`; 0.4 does not find it, and tells it nothing.
        assert told == (upstream.call("task")[0] if IS_0_6 else getattr(upstream.envs[0], "task", ""))
        for found, expected in [(policy_observation(mine, told), preprocess_observation(its)) for mine, its in pairs]:
            assert expected.keys() | {"task"} == found.keys()
            np.testing.assert_array_equal(found["observation.state"], expected["observation.state"][0].numpy())
            picture = expected["observation.images.top"][0].permute(1, 2, 0).numpy() * 255
            np.testing.assert_array_equal(found["observation.images.top"], picture.round())
    finally:
        own.close()
        upstream.close()
