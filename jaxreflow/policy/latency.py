"""How long a call takes: warm-up, repeats, and percentiles in milliseconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

WARM_UP = 3
BUDGET_S = 10.0
"""No latency is timed for longer than this, whatever the number of repeats."""


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


def time_calls(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Milliseconds of each call, after some that are not counted; fewer calls where they take too long."""
    for _ in range(WARM_UP):
        jax.block_until_ready(call())
    times: list[float] = []
    end = time.perf_counter() + BUDGET_S
    while len(times) < repeats and (time.perf_counter() < end or not times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times)


def summarize(part: str, num_steps: int | None, times: np.ndarray) -> Latency:
    """Percentiles of the times of one part, in milliseconds."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return Latency(part, num_steps, len(times), p50, p95, p99)


def device_name() -> str:
    """What the measurements ran on."""
    devices: Sequence[jax.Device] = jax.devices()
    return f"{devices[0].platform} ({devices[0].device_kind})"
