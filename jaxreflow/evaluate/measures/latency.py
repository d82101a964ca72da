"""How long one action chunk takes at batch 1: the prefix, which every step count shares, and the Euler steps."""

from __future__ import annotations

import dataclasses
import functools

import jax

from jaxreflow import flow
from jaxreflow.evaluate.sampling import Trial, memories_of, sample
from jaxreflow.policy.latency import Latency, summarize, time_calls


@dataclasses.dataclass(frozen=True)
class Rate:
    """Actions per second of one step count, if nothing but the policy takes time: n / (prefix + denoise), medians."""

    num_steps: int
    n_action_steps: int
    actions_per_second: float


def measure_latency(trial: Trial) -> tuple[list[Latency], list[Rate]]:
    """Latencies of a policy's parts at every step count; teacher and student have the same architecture, so one tells both."""
    settings, subject = trial.settings, trial.subjects[-1]
    frame = next(trial.batches([0], 1, task="latency"))
    memory, config = frame.memories[subject.name], subject.config
    observation = frame.batch.observation
    noise = flow.sample_noise(jax.random.key(settings.seed), (1, 1, config.chunk_size, config.max_action_dim))
    prefix = summarize("prefix", None, time_calls(lambda: memories_of([subject], observation), settings.repeats))
    parts, rates = [prefix], []
    for steps in sorted(set(settings.num_steps), reverse=True):
        act = functools.partial(sample, subject.params, memory, noise, config=config, num_steps=steps)
        denoise = summarize("denoise", steps, time_calls(act, settings.repeats))
        parts.append(denoise)
        rates += [
            Rate(steps, n, 1e3 * n / (prefix.p50 + denoise.p50))
            for n in sorted(set(settings.n_action_steps))
            if n <= config.chunk_size
        ]
    return parts, rates
