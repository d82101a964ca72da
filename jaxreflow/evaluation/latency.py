"""How long one action chunk takes at batch 1: the prefix, which every step count shares, and the Euler steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxreflow import flow
from jaxreflow.evaluation.sampling import Subject, Trial, memorise, sample
from jaxreflow.types import Memory

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


@dataclasses.dataclass(frozen=True)
class Rate:
    """Actions per second of one step count, if nothing but the policy takes time: n / (prefix + denoise), medians."""

    num_steps: int
    n_action_steps: int
    actions_per_second: float


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


def _latency(part: str, num_steps: int | None, times: np.ndarray) -> Latency:
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return Latency(part, num_steps, len(times), p50, p95, p99)


def measure_latency(trial: Trial) -> tuple[list[Latency], list[Rate]]:
    """Latencies of a policy's parts at every step count; teacher and student have the same architecture, so one tells both."""
    settings, subject = trial.settings, trial.subjects[-1]
    frame = next(trial.batches([0], 1, task="latency"))
    memory, config = frame.memories[subject.name], subject.config
    observation = frame.batch.observation
    noise = flow.sample_noise(jax.random.key(settings.seed), (1, 1, config.chunk_size, config.max_action_dim))
    prefix = _latency("prefix", None, time_calls(lambda: memorise([subject], observation), settings.repeats))
    parts, rates = [prefix], []
    for steps in sorted(set(settings.num_steps), reverse=True):
        denoise = _denoise(subject, memory, noise, steps, settings.repeats)
        parts.append(denoise)
        rates += [
            Rate(steps, n, 1e3 * n / (prefix.p50 + denoise.p50))
            for n in sorted(set(settings.n_action_steps))
            if n <= config.chunk_size
        ]
    return parts, rates


def _denoise(subject: Subject, memory: Memory, noise: jax.Array, steps: int, repeats: int) -> Latency:
    times = time_calls(
        lambda: sample(subject.params, memory, noise, config=subject.config, num_steps=steps),
        repeats,
    )
    return _latency("denoise", steps, times)


def device_name() -> str:
    """What the measurements ran on."""
    devices: Sequence[jax.Device] = jax.devices()
    return f"{devices[0].platform} ({devices[0].device_kind})"
