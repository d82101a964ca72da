"""A gymnasium environment for tests of rollouts: a point on a line that has to reach 1."""

from typing import Any

import gymnasium
import numpy as np


class PointEnv(gymnasium.Env):
    """Starts where the seed says and moves by each action; its picture counts the pictures that were made."""

    task_description = "Go to one"
    joints = slice(None)
    default_max_steps = 20

    def __init__(self, max_steps: int = 20) -> None:
        self.max_steps = max_steps
        self.renders = True
        self.pictures = 0
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8),
                "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        super().reset(seed=seed, options=options)
        self.position, self.steps = float(self.np_random.uniform(-1, 0)), 0
        return self._observe(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.position += float(action[0])
        self.steps += 1
        success = self.position >= 1
        return self._observe(), 0.0, success, self.steps >= self.max_steps and not success, {"is_success": success}

    def hold(self) -> np.ndarray:
        return np.zeros(1)

    def _observe(self) -> dict[str, Any]:
        self.pictures += self.renders
        return {"pixels": np.zeros((2, 2, 3), np.uint8), "agent_pos": np.array([self.position])}
