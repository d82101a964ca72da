"""What a simulated environment is here: a gymnasium environment that observes as LeRobot's environments do.

Its observation is a dict of `pixels`, uint8 `[H, W, 3]` or such images by camera, and `agent_pos`, `[D]`; it reports success as
`info["is_success"]`. Of its class are known

- `instructions`, ways to say the task, one of which is recorded with each demonstration (none: `task_description`);
- `metadata["render_fps"]`, its control steps per second, and `default_max_steps`;
- `joints`, which entries of `agent_pos` are positions of the arm;
- `cameras(options)`, height and width of the pictures by the names that policies know;
- `recording`, what a dataset of its demonstrations is; `also_reports`, what else `info` says of an episode, true or false;

and of an instance `task_description`, what policies are told, `hold()`, the action that keeps the robot where it is, and
`expert(random)`, a function without arguments that gives the next action of a demonstration. If an instance has an attribute
`renders`, that is switched off for steps whose pictures nobody looks at.

It is made as `Class(task, render=..., size=..., max_steps=...)`, the values of `EnvOptions`. A task that it does not have is a
ConfigError. An instance keeps `max_steps`, after which an episode is truncated. A demonstration goes on for `recording.tail` steps
after success, so `step` must stand that. Another environment is one file beside `metaworld.py` and `aloha.py`, and a name in
`ENVIRONMENTS`; `tests/test_sim_another.py` has a small one.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from jaxtyping import Float

from jaxreflow.errors import ConfigError

ENVIRONMENTS: Mapping[str, str] = {
    "metaworld": "jaxreflow.sim.metaworld:MetaWorldEnv",
    "aloha": "jaxreflow.sim.aloha:AlohaEnv",
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """What a dataset of an environment's demonstrations is, and how they are disturbed."""

    robot_type: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    disturbed: tuple[float, ...]
    """1 for each action dim that a disturbance moves, else 0."""
    disturbance: float
    """Its largest scale, in units of the actions."""
    tail: int
    """Frames that follow success, in which the expert goes on."""


@dataclasses.dataclass(frozen=True)
class EnvOptions:
    """How an environment is set up. It must be the same for a policy's data and its evaluation."""

    render: Literal["fast", "stock"] = "fast"
    """`fast` pictures have no shadows and `--options.size` pixels. `stock` are LeRobot's own, larger and slower."""
    size: int = 96
    """Width of fast pictures. Meta-World's are as high, Aloha's three quarters of it."""
    max_steps: int | None = None
    """Steps after which an episode has failed (default: the environment's; 200 in Meta-World, 400 in Aloha)."""

    def __post_init__(self) -> None:
        for flag, value, least in (("size", self.size, 8), ("max-steps", self.max_steps, 1)):
            if value is not None and value < least:
                raise ConfigError(f"--options.{flag} must be at least {least}, found {value}")

    def of(self, name: str) -> EnvOptions:
        """These options with the defaults of an environment; SimulationError where the simulator is missing."""
        steps = environment(name).default_max_steps if self.max_steps is None else self.max_steps
        return dataclasses.replace(self, max_steps=steps)


def parse_env(spec: str) -> tuple[str, tuple[str, ...]]:
    """`NAME:TASK[,TASK...]` as name and tasks; ConfigError says what there is."""
    name, colon, tasks = spec.partition(":")
    if name not in ENVIRONMENTS or not colon or not all(tasks.split(",")):
        raise ConfigError(
            f"--env must be NAME:TASK[,TASK...] with NAME one of {', '.join(ENVIRONMENTS)}, found {spec!r}"
        )
    return name, tuple(tasks.split(","))


def make_env(name: str, task: str, options: EnvOptions) -> gymnasium.Env:
    """One environment; ConfigError for an unknown task, SimulationError where the simulator or its renderer is missing."""
    env: gymnasium.Env = environment(name)(task, **dataclasses.asdict(options.of(name)))
    return env


def check_tasks(name: str, tasks: Iterable[str], options: EnvOptions) -> None:
    """ConfigError for an unknown task, SimulationError where the simulator is missing: before hours are spent on the others."""
    for task in tasks:
        make_env(name, task, options).close()


def environment(name: str) -> Any:
    """An environment's class; SimulationError where the simulator is missing."""
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
