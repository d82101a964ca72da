"""Policies under evaluation, and chunks from given noise: an observation is encoded once for all noises and step counts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreflow import flow, model
from jaxreflow.data.loader import TrainingSource, iterate_once
from jaxreflow.evaluate.settings import Settings
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import stored_in_compute_dtype
from jaxreflow.model.types import Batch, Context, Memory, Observation, Params
from jaxreflow.policy.observation import Transforms
from jaxreflow.run.data import normalized_batch
from jaxreflow.support.console import progress
from jaxreflow.training.losses import CONTEXT_PARAMS

_TIMES = 64  # Length to which times are filled up, so that most step counts share a shape.
Memories: TypeAlias = Mapping[str, Memory]
"""What each subject keeps of a batch of observations, by the subject's name."""


@dataclasses.dataclass(frozen=True)
class AtSteps:
    """What is said of one policy at one number of Euler steps."""

    name: str
    num_steps: int

    @property
    def label(self) -> str:
        """Such as `student@1`."""
        return f"{self.name}@{self.num_steps}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A policy under evaluation: `teacher` or `student`, with its parameters in the compute dtype."""

    name: str
    params: Params
    config: ModelConfig


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A subject with a number of Euler steps."""

    subject: Subject
    num_steps: int

    @property
    def label(self) -> str:
        """Such as `student@1`."""
        return f"{self.subject.name}@{self.num_steps}"


def make_subject(name: str, params: Params, config: ModelConfig, like: Subject | None = None) -> Subject:
    """A subject on the devices; leaves that equal those of `like` are shared with it, so that they are held once."""
    if like is not None and like.config == config:
        # The other's leaves are stored in the compute dtype: round first, then compare.
        stored = stored_in_compute_dtype(params, config)
        return Subject(name, jax.tree.map(_shared, stored, like.params), config)
    return Subject(name, jax.tree.map(jnp.asarray, stored_in_compute_dtype(params, config)), config)


def _shared(own: Any, other: Array) -> Array:
    return other if np.array_equal(np.asarray(own), np.asarray(other)) else jnp.asarray(own)


@functools.partial(jax.jit, static_argnames="config")
def _context(params: Params, observation: Observation, *, config: ModelConfig) -> Context:
    return model.observe(params, observation, config=config)


@functools.partial(jax.jit, static_argnames="config")
def _memory(params: Params, context: Context, state: Array, *, config: ModelConfig) -> Memory:
    return model.memorise(params, context, state, config=config)


def sample(
    params: Params, memory: Memory, noise: Float[Array, "B M C A"], *, config: ModelConfig, num_steps: int
) -> Float[Array, "B M C A"]:
    """`flow.euler`, by one program for all step counts: compiling one for each would take longer than running them."""
    times = np.zeros(-(-num_steps // _TIMES) * _TIMES, np.float32)
    times[:num_steps] = flow.euler_times(num_steps)
    return _integrate(params, memory, noise, times, np.int32(num_steps), config=config)


@functools.partial(jax.jit, static_argnames="config")
def _integrate(
    params: Params, memory: Memory, noise: Array, times: Array, num_steps: Array, *, config: ModelConfig
) -> Array:
    def step(i: Array, x: Array) -> Array:
        t = jnp.broadcast_to(times[i], x.shape[:-2])
        return x - model.velocity(params, memory, x, t, config=config) / num_steps.astype(jnp.float32)

    return jax.lax.fori_loop(0, num_steps, step, noise)


def sees_alike(first: Subject, second: Subject) -> bool:
    """Whether an observation's context is the same for both: they hold the very same weights of what computes it."""
    if first.config != second.config:
        return False
    own, other = ({name: subject.params[name] for name in CONTEXT_PARAMS} for subject in (first, second))
    return jax.tree.all(jax.tree.map(lambda a, b: a is b, own, other))


def memories_of(subjects: Sequence[Subject], observation: Observation) -> Memories:
    """What every subject keeps of the observations; what they see alike is encoded once."""
    memories = {}
    seen: list[tuple[Subject, Context]] = []
    for subject in subjects:
        context = next((context for other, context in seen if sees_alike(other, subject)), None)
        if context is None:
            context = _context(subject.params, observation, config=subject.config)
            seen.append((subject, context))
        memories[subject.name] = _memory(subject.params, context, jnp.asarray(observation.state), config=subject.config)
    return memories


def chunks(candidate: Candidate, memories: Memories, noise: Float[Array, "B M C A"]) -> Float[np.ndarray, "B M C A"]:
    """The candidate's normalised, padded actions from the given noise, on the host."""
    subject, steps = candidate.subject, candidate.num_steps
    return np.asarray(sample(subject.params, memories[subject.name], noise, config=subject.config, num_steps=steps))


@dataclasses.dataclass(frozen=True)
class FrameBatch:
    """Observations at `positions` of a source; the batch is filled up to its size by repeating the last one."""

    positions: np.ndarray
    batch: Batch
    memories: Memories

    @property
    def valid(self) -> int:
        """Number of observations that are asked for."""
        return len(self.positions)

    @property
    def size(self) -> int:
        """Number of observations in the batch."""
        return len(self.batch.index)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Who is compared with whom, on which data, and how thoroughly; the first subject is the teacher."""

    subjects: tuple[Subject, ...]
    reference: Candidate
    """The teacher at its own step count."""
    source: TrainingSource
    transforms: Transforms
    settings: Settings

    @property
    def policies(self) -> tuple[Candidate, ...]:
        """Every subject at every step count, most steps first; the reference is always among them."""
        steps = sorted(set(self.settings.num_steps), reverse=True)
        asked = tuple(Candidate(subject, count) for subject in self.subjects for count in steps)
        return asked if self.reference.num_steps in steps else (self.reference, *asked)

    @property
    def config(self) -> ModelConfig:
        """The teacher's architecture."""
        return self.reference.subject.config

    @property
    def action_dim(self) -> int:
        """Number of real action dims; the first ones."""
        return self.transforms.policy.action_dim

    def batches(self, positions: Sequence[int], batch_size: int | None = None, *, task: str) -> Iterator[FrameBatch]:
        """The frames at these positions of the source in batches, memorised by all subjects; shows how far `task` is."""
        size = min(batch_size or self.settings.batch_size, len(positions))
        with progress(task, len(positions), unit="frame") as advance:
            for i, (example, valid) in enumerate(iterate_once(self.source, size, list(positions))):
                batch = normalized_batch(example, self.transforms)
                chosen = np.asarray(positions[i * size : i * size + valid])
                yield FrameBatch(chosen, batch, memories_of(self.subjects, batch.observation))
                advance(valid)


def noise_for(frames: FrameBatch, noises: int, config: ModelConfig, seed: int) -> Float[Array, "B M C A"]:
    """Noise that depends on seed and frame only: the same for every policy, step count and batch size."""
    key = jax.random.key(seed)
    return _noise(key, jnp.asarray(frames.batch.index), (noises, config.chunk_size, config.max_action_dim))


@functools.partial(jax.jit, static_argnums=2)
def _noise(key: Array, index: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda i: flow.sample_noise(jax.random.fold_in(key, i), shape))(index)
