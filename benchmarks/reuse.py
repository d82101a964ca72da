"""What a policy saves that looks once for several chunks: at newer states, or for many candidates."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import result, spread
from benchmarks.workload import full_checkpoint
from jaxreflow.errors import ConfigError
from jaxreflow.policy.latency import time_in_turn
from jaxreflow.policy.observation import example_observation
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy

WHOLE, LOOK = "whole call", "observe"


@dataclasses.dataclass(frozen=True)
class ReuseConfig:
    """Seconds of `SmolVLAPolicy`: a whole call, `observe`, and chunks from its context with 1, 4, 16 and 64 candidates."""

    checkpoint: Path | None = None
    """A policy in LeRobot's layout, its VLM's files in vlm/ (default: a random one of full size)."""
    cameras: int = 2
    """Cameras of the random policy."""
    steps: int = 1
    """Euler steps."""
    candidates: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of candidates."""
    dtype: str = "float32"
    """Compute dtype."""
    runs: int = 7
    """Turns of each kind of call."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""

    def __post_init__(self) -> None:
        if not self.candidates or min(self.candidates) < 1 or self.runs < 1:
            raise ConfigError(f"--candidates and --runs must be at least 1, found {self.candidates} and {self.runs}")


def run(config: ReuseConfig) -> None:
    """Prints the seconds of each kind of call, in turn, and appends one JSON line."""
    with result("reuse", config) as record:
        policy = SmolVLAPolicy.from_pretrained(config.checkpoint or full_checkpoint(config.cameras), dtype=config.dtype)
        calls = _calls(policy, config)
        times = dict(zip(calls, (t / 1e3 for t in time_in_turn(list(calls.values()), config.runs)), strict=True))
        whole = times[WHOLE]
        for name, seconds in times.items():
            share = statistics.median((seconds / whole).tolist())
            print(f"{name:32}{statistics.median(seconds.tolist()):9.4f} s{share:8.3f} of a whole call")
            record[name] = {"seconds": spread(seconds.tolist()), "of_whole": spread((seconds / whole).tolist())}


def _calls(policy: SmolVLAPolicy, config: ReuseConfig) -> dict[str, Callable[[], Any]]:
    example = example_observation(policy.transforms)
    seen = policy.observe(example)
    left_over = np.zeros((1, policy.config.action_dim), np.float32)
    predict = functools.partial(policy.predict_action_chunk, example, num_steps=config.steps)
    calls: dict[str, Callable[[], Any]] = {WHOLE: predict, LOOK: lambda: policy.observe(example).context}
    for count in config.candidates:
        rival = {"prev_chunk_left_over": left_over} if count > 1 else {}
        name = f"chunk from its context, {count} drawn"
        calls[name] = functools.partial(predict, context=seen, candidates=count, **rival)
    return calls
