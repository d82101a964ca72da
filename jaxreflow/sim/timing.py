"""When a robot looks, how long it waits for the answer, and what it does meanwhile."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from jaxreflow.errors import ConfigError

Execution: TypeAlias = Literal["blocking", "asynchronous", "rtc", "rtc-counted", "candidates"]
GUIDED = ("rtc", "rtc-counted")
STILL, OLD, NEW = range(3)
HOLD, STOP = np.nan, np.inf
"""In place of an action: stand still for a step, and: the chunk ends here."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """How chunks follow each other. All times are control steps.

    The robot stands still until its first chunk is there. After that:

    - `blocking`: it executes `n_action_steps`, looks, and stands still for `delay` steps.
    - `asynchronous`: it looks when `n_action_steps` of a chunk are behind it, goes on with the old chunk for `delay` steps, and
      then switches to the new one. It leaves out as many of its actions as it has executed since it looked.
    - `rtc`: the same as LeRobot 0.6.1's `RTCInferenceEngine`. The new chunk is guided towards the first `execution_horizon`
      actions of the rest, filled up with zeros. It always leaves out `delay` actions, also of the first chunk.
    - `rtc-counted`: the same guidance, but asynchronous otherwise. It leaves out as many actions as the robot has executed.
    - `candidates`: asynchronous with the best of several chunks.
    """

    n_action_steps: int
    execution: Execution = "blocking"
    delay: int = 0
    candidates: int = 1
    execution_horizon: int = 10
    """Of `rtc` and `rtc-counted`."""
    look_every: int = 0
    """Steps between two looks at the images, a multiple of `n_action_steps`. 0: a look for every chunk."""
    look_delay: int = 0
    """Steps after which images that were looked at count. Only with `look_every`."""

    def __post_init__(self) -> None:
        for name, least in (("n_action_steps", 1), ("candidates", 1), ("execution_horizon", 1), ("delay", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("look_every", "look_delay"):
            _whole(name, getattr(self, name), 0)
        if (self.execution == "candidates") != (self.candidates > 1):
            raise ConfigError(
                f"--execution {self.execution} --candidates {self.candidates}: expected 2 candidates or more with --execution "
                "candidates, and none otherwise; give both or neither"
            )
        if self.look_every % self.n_action_steps:
            raise ConfigError(
                f"--look-every {self.look_every}: expected a multiple of the {self.n_action_steps} steps between two chunks "
                f"(--act-every), such as {self.n_action_steps * max(self.look_every // self.n_action_steps, 1)}"
            )
        if self.look_delay and not self.look_every:
            raise ConfigError(
                f"--look-delay {self.look_delay}: expected a --look-every, found none; give the steps between two looks"
            )
        if self.look_delay > self.look_every:
            raise ConfigError(
                f"--look-delay {self.look_delay}: expected at most the {self.look_every} steps between two looks (--look-every); "
                "look less often"
            )

    @property
    def label(self) -> str:
        """In words, without `n_action_steps`: `candidates 16, delay 5`."""
        horizon = f" to {self.execution_horizon}"
        details = {"candidates": f" {self.candidates}", **dict.fromkeys(GUIDED, horizon)}
        words = self.execution + details.get(self.execution, "")
        looks = f", images every {self.look_every}, {self.look_delay} late" if self.look_every else ""
        return f"{words}, delay {self.delay}{looks}"


def _whole(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{name.replace('_', '-')}: expected a whole number of at least {least}, found {value}")


class Plan(NamedTuple):
    """What follows an observation, up to the next one."""

    actions: Float[np.ndarray, "L d"]
    """Actions, and HOLD where there is none."""
    chunks: Int[np.ndarray, " L"]
    """Where each is from: the chunk before (OLD), this one (NEW), or none (STILL)."""
    left_over: Float[np.ndarray, "T d"]
    """What will be left of the new chunk when the next observation is taken."""


def plan(
    timing: Timing, chunk: Float[np.ndarray, "C d"], left_over: Float[np.ndarray, "T d"], wait: int | None = None
) -> Plan:
    """Joins the rest of the old chunk and the beginning of the new one, which is there after `wait` steps (None: `delay`)."""
    delay = timing.delay if wait is None else wait
    under_way = left_over[:0] if timing.execution == "blocking" else left_over[:delay]
    new = chunk[timing.delay if timing.execution == "rtc" else len(under_way) :]
    now = new[: max(len(new) - (len(chunk) - timing.n_action_steps), 0)]
    still = np.full((delay - len(under_way), chunk.shape[1]), HOLD, chunk.dtype)
    chunks = np.repeat([OLD, STILL, NEW], [len(under_way), len(still), len(now)])
    return Plan(np.concatenate([under_way, still, now]), chunks, new[len(now) :])
