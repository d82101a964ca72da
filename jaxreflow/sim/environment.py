"""What a simulated environment is here: a gymnasium environment that observes as LeRobot's environments do.

Its observation is a dict of `pixels`, uint8 `[H, W, 3]` or such images by camera, and `agent_pos`, `[D]`; it has an attribute
`task_description`, the instruction, and reports success as `info["is_success"]`. `hold()` is the action that keeps the robot
where it is, and `joints` says which entries of `agent_pos` are positions of the arm. If it has an attribute `renders`, that is
switched off for steps whose pictures nobody looks at. Another environment is one file beside `metaworld.py` and a
name in `ENVIRONMENTS`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from jaxtyping import Float

from jaxreflow.errors import ConfigError

ENVIRONMENTS: Mapping[str, str] = {"metaworld": "jaxreflow.sim.metaworld:MetaWorldEnv"}


@dataclasses.dataclass(frozen=True)
class EnvOptions:
    """How an environment is set up. It must be the same for a policy's data and its evaluation."""

    render: Literal["fast", "stock"] = "fast"
    """`fast` pictures have no shadows and `--options.size` pixels. `stock` are LeRobot's own, 480 x 480 and slower."""
    size: int = 96
    """Width and height of fast pictures."""
    max_steps: int = 200
    """Steps after which an episode has failed."""

    def __post_init__(self) -> None:
        for name in ("size", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")


def parse_env(spec: str) -> tuple[str, tuple[str, ...]]:
    """`NAME:TASK[,TASK...]` as name and tasks; ConfigError says what there is."""
    name, colon, tasks = spec.partition(":")
    if name not in ENVIRONMENTS or not colon or not all(tasks.split(",")):
        raise ConfigError(
            f"--env must be NAME:TASK[,TASK...] with NAME one of {', '.join(ENVIRONMENTS)}, found {spec!r}"
        )
    return name, tuple(tasks.split(","))


def control_rate(name: str) -> float:
    """Control steps per second of an environment's robots; SimulationError where the simulator is missing."""
    return float(_environment(name).metadata["render_fps"])


def make_env(name: str, task: str, options: EnvOptions) -> gymnasium.Env:
    """One environment; ConfigError for an unknown task, SimulationError where the simulator or its renderer is missing."""
    env: gymnasium.Env = _environment(name)(task, **dataclasses.asdict(options))
    return env


def _environment(name: str) -> Any:
    module, _, attribute = ENVIRONMENTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


class ActionChunks(gymnasium.Wrapper):
    """An environment whose action is a chunk `[n, D]`, executed until it or the episode ends; only the last step is pictured.

    Rows of HOLD keep the robot still, and the first row of STOP ends the chunk.
    """

    def __init__(self, env: gymnasium.Env, length: int) -> None:
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.action_space = gymnasium.spaces.Box(
            np.broadcast_to(space.low, (length, *space.shape)), np.broadcast_to(space.high, (length, *space.shape))
        )

    def step(self, action: Float[np.ndarray, "n D"]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Executes the chunk.

        `info["steps"]` says how many of its steps, and `info["held"]` in how many the robot stood still. `info["commands"]`
        `[n, D]` are the actions, and `info["positions"]` `[n, J]` where they led the arm's joints; NaN follows the end.
        """
        count = int(np.argmax(np.isposinf(action[:, 0]))) if np.isposinf(action[:, 0]).any() else len(action)
        commands = np.full(action.shape, np.nan)
        positions: list[np.ndarray] = []
        total, held = 0.0, 0
        for i, one in enumerate(action[:count]):
            self._render(i == count - 1)
            still = bool(np.isnan(one).any())
            held += still
            commands[i] = self.env.unwrapped.hold() if still else one  # type: ignore[attr-defined]
            observation, reward, terminated, truncated, info = self.env.step(commands[i])
            positions.append(observation["agent_pos"][self.env.unwrapped.joints])  # type: ignore[attr-defined]
            total += float(reward)
            if terminated or truncated:
                break
        self._render(True)
        path = np.full((len(action), len(positions[0])), np.nan)
        path[: len(positions)] = positions
        done = {"steps": i + 1, "held": held, "commands": commands, "positions": path}
        return observation, total, terminated, truncated, {**info, **done}

    def _render(self, value: bool) -> None:
        if hasattr(self.env.unwrapped, "renders"):
            self.env.unwrapped.renders = value


def policy_observation(observation: Mapping[str, Any], task: str | list[str]) -> dict[str, Any]:
    """An environment's observation under the names that policies know, as LeRobot renames them."""
    pixels = observation["pixels"]
    if isinstance(pixels, Mapping):
        images = {f"observation.images.{camera}": image for camera, image in pixels.items()}
    else:
        images = {"observation.image": pixels}
    return {**images, "observation.state": np.asarray(observation["agent_pos"], np.float32), "task": task}
