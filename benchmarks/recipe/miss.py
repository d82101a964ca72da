"""How far a policy reaches past the cube on Aloha's TransferCube: the teacher's gate.

    python -m benchmarks.recipe.miss --policy RUN/checkpoints/last/pretrained_model

The miss of an episode is the horizontal distance between the right gripper's fingers and where the cube lay, at the lowest point of
the gripper's first 80 steps. A policy that has not found the cube misses by 7 to 9 cm; the cube is 4 cm wide.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxreflow.errors import ConfigError
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim.aloha_expert import Gripper
from jaxreflow.sim.environment import EnvOptions, make_env, policy_observation
from jaxreflow.sim.rollout import episode_noise
from jaxreflow.support.command_line import parse
from jaxreflow.support.command_line import run as run_command


@dataclasses.dataclass(frozen=True)
class MissConfig:
    """Misses of a policy, in centimetres."""

    policy: str
    """A policy in LeRobot's layout."""
    num_steps: int = 10
    """Euler steps."""
    n_action_steps: int = 10
    """Actions executed per chunk."""
    episodes: int = 20
    """Episodes."""
    seed: int = 100_000
    """Seed of the first."""
    steps: int = 80
    """Control steps in which the lowest point is looked for."""
    options: EnvOptions = dataclasses.field(default_factory=EnvOptions)

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("n_action_steps", 1), ("episodes", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, found {getattr(self, name)}")


def measure(config: MissConfig) -> Float[np.ndarray, " E"]:
    """The miss of each episode, in metres."""
    policy = SmolVLAPolicy.from_pretrained(config.policy)
    if config.n_action_steps > policy.config.chunk_size:
        raise ConfigError(
            f"--n-action-steps {config.n_action_steps}: {config.policy} predicts {policy.config.chunk_size} actions at once; give "
            "at most so many"
        )
    with contextlib.closing(make_env("aloha", "transfer-cube", config.options)) as env:
        return np.array([_miss(env, policy, config, config.seed + i) for i in range(config.episodes)])


def _miss(env: Any, policy: SmolVLAPolicy, config: MissConfig, seed: int) -> float:
    env.renders = True
    observation, _ = env.reset(seed=seed)
    cube, lowest, miss = env.cube, np.inf, np.inf
    shape = (policy.config.chunk_size, policy.config.max_action_dim)
    for query, first in enumerate(range(0, config.steps, config.n_action_steps)):
        seen = policy_observation(observation, env.task_description)
        noise = episode_noise(np.array([seed]), np.array([query]), shape)
        chunk = policy.predict_action_chunk(seen, noise, config.num_steps)[0]
        actions = chunk[: min(config.n_action_steps, config.steps - first)]
        for i, action in enumerate(actions):
            env.renders = i == len(actions) - 1
            observation, _, over, _, _ = env.step(action)
            place = Gripper(env, "right").place
            if place[2] < lowest:
                lowest, miss = place[2], float(np.linalg.norm((place - cube)[:2]))
            if over:
                return miss
    return miss


def main() -> int:
    """0 if it was measured, 1 after an error."""
    return run_command(_main, None)


def _main(args: list[str]) -> int:
    config = parse(MissConfig, args, prog="python -m benchmarks.recipe.miss", about=__doc__ or "")
    misses = 100 * measure(config)
    middle, high = np.median(misses), np.percentile(misses, 90)
    print(
        f"miss over {len(misses)} episodes: median {middle:.2f} cm, 90th percentile {high:.2f} cm, mean {misses.mean():.2f} cm"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
