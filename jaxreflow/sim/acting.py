"""A policy as simulated robots use it: what it is given besides the observation, and how long it takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.policy.latency import time_in_turn
from jaxreflow.policy.observation import example_observation
from jaxreflow.policy.smolvla_policy import SeenContext, SmolVLAPolicy
from jaxreflow.sim.rollout import Act, Query
from jaxreflow.sim.timing import GUIDED, Timing
from jaxreflow.support.device_memory import device_memory

_REPEATS = 20


def make_act(policy: SmolVLAPolicy, num_steps: int, timing: Timing) -> Act:
    """The policy's chunks for the queries of a rollout; SimulationError if they are not finite."""
    looks = Looks(policy, timing) if timing.look_every else None

    def act(query: Query) -> np.ndarray:
        options: dict[str, Any] = {} if looks is None else {"context": looks(query)}
        if timing.execution == "candidates":
            options |= {"candidates": timing.candidates, "prev_chunk_left_over": list(query.left_over)}
        elif timing.execution in GUIDED and query.clock.any():
            options |= _guidance(policy, timing, query)
        chunks = policy.predict_action_chunk(query.observation, query.noise, num_steps, **options)
        if not np.isfinite(chunks).all():
            raise SimulationError(
                f"{policy.checkpoint.directory} gives actions that are not finite; expected numbers; look for the cause with "
                f"`python -m convert doctor {policy.checkpoint.directory}`"
            )
        return chunks

    return act


def noise_shape(policy: SmolVLAPolicy, timing: Timing, parallel: int = 1) -> tuple[int, ...]:
    """The shape of the noise that one query of an episode takes; ConfigError if that of `parallel` episodes fits no memory."""
    candidates = (timing.candidates,) if timing.candidates > 1 else ()
    shape = (*candidates, policy.config.chunk_size, policy.config.max_action_dim)
    if (needed := 4 * parallel * math.prod(shape)) > (most := device_memory()):
        raise ConfigError(
            f"--candidates {timing.candidates}: their noise for {parallel} environments (--parallel) takes {needed / 2**30:.1f} "
            f"GiB, the device has {most / 2**30:.1f}; give fewer"
        )
    return shape


def _guidance(policy: SmolVLAPolicy, timing: Timing, query: Query) -> dict[str, Any]:
    """As LeRobot's engine guides: towards the rest of the queue, cut or filled up with (normalised) zeros to the horizon."""
    horizon = timing.execution_horizon
    zeros = policy.transforms.unnormalize_action(np.zeros((horizon, policy.config.max_action_dim), np.float32))
    rows = [
        np.concatenate([left_over, zeros[len(left_over) :]])[:horizon] if began else left_over
        for left_over, began in zip(query.left_over, query.clock, strict=True)
    ]
    # LeRobot's weights are 1 up to the delay, and end at the horizon.
    delay = min(timing.delay, horizon)
    return {"prev_chunk_left_over": rows, "inference_delay": delay, "execution_horizon": horizon}


class Looks:
    """What robots have seen: each looks every `look_every` steps, and what it saw counts `look_delay` steps later."""

    def __init__(self, policy: SmolVLAPolicy, timing: Timing) -> None:
        self._policy, self._timing = policy, timing
        self._current: SeenContext | None = None
        self._coming: SeenContext | None = None
        self._taken = np.zeros(0, int)

    def __call__(self, query: Query) -> SeenContext:
        """The context that each robot acts by; one that begins an episode looks and waits for what it sees."""
        begins, clock = query.clock == 0, query.clock
        if self._coming is None or self._current is None:
            self._coming = self._current = self._policy.observe(query.observation)
            self._taken = np.zeros_like(clock)
            return self._current
        self._arrive(clock)
        due = begins | (clock - self._taken >= self._timing.look_every)
        if due.any():
            self._coming = self._coming.with_rows(due, self._policy.observe(query.observation))
            self._taken = np.where(due, clock, self._taken)
        self._arrive(clock, begins)
        return self._current

    def _arrive(self, clock: np.ndarray, begins: np.ndarray | bool = False) -> None:
        assert self._coming is not None
        assert self._current is not None
        there = begins | (clock - self._taken >= self._timing.look_delay)
        self._current = self._current.with_rows(there, self._coming)


def delays_in_steps(
    policy: SmolVLAPolicy, num_steps: int, timing: Timing, rate: float, slower: float
) -> tuple[int, int]:
    """The delay of a chunk and, where the robot looks less often than it acts, of a look: measured here, in control steps.

    They are medians at batch 1, `slower` times as long as on this machine, rounded up as LeRobot's engine does.

    Args:
        rate: control steps per second.
    """
    example = example_observation(policy.transforms)
    options: dict[str, Any] = {"candidates": timing.candidates}
    if timing.look_every:
        options["context"] = policy.observe(example)
    if timing.candidates > 1:
        options |= {
            "prev_chunk_left_over": np.zeros(
                (policy.config.chunk_size - timing.n_action_steps, policy.config.action_dim)
            )
        }
    if timing.execution in GUIDED:
        options |= {"prev_chunk_left_over": np.zeros((timing.execution_horizon, policy.config.action_dim))}
    calls: list[Callable[[], object]] = [
        functools.partial(policy.predict_action_chunk, example, num_steps=num_steps, **options)
    ]
    if timing.look_every:
        calls.append(lambda: policy.observe(example).context)
    medians = [float(np.median(times)) / 1e3 for times in time_in_turn(calls, _REPEATS)]
    act, look = (math.ceil(slower * seconds * rate) for seconds in (*medians, 0.0)[:2])
    return act, look
