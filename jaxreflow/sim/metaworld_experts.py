"""Scripted experts: Meta-World's own, and one that passes the wall on a side drawn per episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from jaxreflow.errors import ConfigError

WALL_DETOUR = "wall-detour"

# The next action `[4]` from Meta-World's full observation `[39]`; it may remember what it has seen of its episode.
Expert: TypeAlias = Callable[[np.ndarray], np.ndarray]


def make_expert(task: str, random: np.random.Generator) -> Expert:
    """A fresh expert for one episode; ConfigError if Meta-World has none for the task."""
    if task == WALL_DETOUR:
        return WallDetourExpert(random).act
    from metaworld.policies import ENV_POLICY_MAP

    if task not in ENV_POLICY_MAP:
        raise ConfigError(f"no scripted expert for the task {task!r}; expected one of {', '.join(ENV_POLICY_MAP)}")
    kind: type[Any] = ENV_POLICY_MAP[task]
    return kind().get_action


class WallDetourExpert:
    """Passes the wall left or right with equal chance; in its first steps it goes straight on, so its side cannot be told."""

    DETOUR_X = 0.24
    APPROACH_Y, PASSED_Y = 0.72, 0.86

    def __init__(self, random: np.random.Generator) -> None:
        self.side = int(random.choice((-1, 1)))
        self._undecided = int(random.integers(3, 9))
        self._stage = 0

    def act(self, obs: Float[np.ndarray, " 39"]) -> Float[np.ndarray, " 4"]:
        """Proportional control towards the next of three points: beside the wall, past it, the goal."""
        if self._undecided > 0:
            self._undecided -= 1
            return np.array([0.0, 0.4, 0.0, 0.0], np.float32)
        hand, goal = obs[:3], obs[-3:]
        if self._stage == 0 and abs(hand[0]) > 0.20 and hand[1] > 0.66:
            self._stage = 1
        if self._stage == 1 and hand[1] > 0.82:
            self._stage = 2
        beside = self.side * self.DETOUR_X
        points = (
            np.array([beside, self.APPROACH_Y, max(0.1, goal[2])]),
            np.array([beside, self.PASSED_Y, goal[2]]),
            goal,
        )
        return np.append(np.clip(10.0 * (points[self._stage] - hand), -1.0, 1.0), 0.0).astype(np.float32)
