"""How long one action chunk takes at batch 1: the prefix, which every step count shares, and the Euler steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax

from jaxreflow import flow
from jaxreflow.evaluate.sampling import AtSteps, Subject, Trial, memories_of, sample
from jaxreflow.policy.latency import Latency, summarize, time_in_turn


@dataclasses.dataclass(frozen=True)
class Rate:
    """Actions per second of one step count, if nothing but the policy takes time: n / (prefix + denoise), medians."""

    num_steps: int
    n_action_steps: int
    actions_per_second: float
    name: str = ""
    """The subject, as `Latency.name`."""


@dataclasses.dataclass(frozen=True)
class CallCost(AtSteps):
    """Median milliseconds of one call of a policy: its parts, their sum, and how many times faster than the reference."""

    prefix: float
    loop: float
    call: float
    times_faster: float | None
    """None where the reference was not timed."""


def measure_latency(trial: Trial) -> tuple[list[Latency], list[Rate]]:
    """Latencies of the policies' parts at every step count, measured in turn; one subject stands for all of its network."""
    settings, config = trial.settings, trial.config
    frame = next(trial.batches([0], 1, task="latency"))
    noise = flow.sample_noise(jax.random.key(settings.seed), (1, 1, config.chunk_size, config.max_action_dim))
    steps = sorted({candidate.num_steps for candidate in trial.policies}, reverse=True)
    parts: dict[tuple[str, int | None], Callable[[], object]] = {}
    for name, subject in _timed(trial.subjects).items():
        parts[name, None] = functools.partial(memories_of, [subject], frame.batch.observation)
        act = functools.partial(sample, subject.params, frame.memories[subject.name], noise, config=subject.config)
        parts |= {(name, count): functools.partial(act, num_steps=count) for count in steps}
    times = time_in_turn(list(parts.values()), settings.repeats)
    found = [
        summarize("prefix" if count is None else "denoise", count, taken, name)
        for (name, count), taken in zip(parts, times, strict=True)
    ]
    rates = [
        Rate(row.num_steps, n, 1e3 * n / (row.p50 + _prefix(found, row.name)), row.name)
        for row in found
        if row.num_steps is not None
        for n in sorted(set(settings.n_action_steps))
        if n <= config.chunk_size
    ]
    return found, rates


def call_costs(latency: Sequence[Latency], labels: Sequence[AtSteps], reference: str) -> list[CallCost]:
    """What a call of each policy costs, of those that were timed; `reference` is a label such as `teacher@10`."""
    named = {row.name for row in latency}
    loops = {(row.name, row.num_steps): row.p50 for row in latency if row.num_steps is not None}
    found = []
    for policy in labels:
        name = policy.name if policy.name in named else ""
        if (name, policy.num_steps) in loops:
            prefix, loop = _prefix(latency, name), loops[name, policy.num_steps]
            found.append(CallCost(policy.name, policy.num_steps, prefix, loop, prefix + loop, None))
    goal = next((row.call for row in found if row.label == reference), None)
    return [row if goal is None else dataclasses.replace(row, times_faster=goal / row.call) for row in found]


def _timed(subjects: Sequence[Subject]) -> dict[str, Subject]:
    """Whom to time: the last subject for all if they have one network, which is then called ""; else each."""
    if len({subject.config for subject in subjects}) == 1:
        return {"": subjects[-1]}
    return {subject.name: subject for subject in subjects}


def _prefix(latency: Sequence[Latency], name: str) -> float:
    return next(row.p50 for row in latency if row.name == name and row.num_steps is None)
