"""jaxreflow's stock Meta-World pictures and steps against LeRobot's `MetaworldEnv`."""

import numpy as np
import pytest

from jaxreflow.sim.metaworld import MetaWorldEnv
from tests.parity.lerobot_shim import upstream_warnings_ignored

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
