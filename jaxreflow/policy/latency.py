"""How long a call takes: warm-up, repeats, and percentiles in milliseconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

WARM_UP = 3
BUDGET_S = 10.0
"""Calls are not repeated for longer than this, one with another, whatever the number of repeats."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds of one part at batch 1, compiled, with inputs on the host and results waited for."""

    part: str
    """`prefix` (images, language and state to the expert's memory) or `denoise`."""
    num_steps: int | None
    calls: int
    p50: float
    p95: float
    p99: float
    name: str = ""
    """The policy, where there are several; "" stands for all of them, as they have one network."""


def time_in_turn(calls: Sequence[Callable[[], object]], repeats: int) -> list[np.ndarray]:
    """Milliseconds of each call, all of them in turn, so that a machine that slows down slows all of them.

    Some calls before are not counted. Where they take too long, there are fewer of them.
    """
    for call in calls:
        for _ in range(WARM_UP):
            jax.block_until_ready(call())
    rounds: list[list[float]] = []
    end = time.perf_counter() + BUDGET_S * len(calls)
    while len(rounds) < repeats and (time.perf_counter() < end or not rounds):
        rounds.append([_milliseconds(call) for call in calls])
    return list(np.array(rounds).T)


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)


def summarize(part: str, num_steps: int | None, times: np.ndarray, name: str = "") -> Latency:
    """Percentiles of the times of one part, in milliseconds."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return Latency(part, num_steps, len(times), p50, p95, p99, name)


def device_name() -> str:
    """What the measurements ran on."""
    devices: Sequence[jax.Device] = jax.devices()
    return f"{devices[0].platform} ({devices[0].device_kind})"
