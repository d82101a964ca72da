"""How far a policy is from its teacher: the same noise, the same frames, actions compared in normalised units."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreflow import flow
from jaxreflow.data.loader import TrainingSource, iterate_once, to_batch
from jaxreflow.policy import SmolVLAPolicy, sample_chunks
from jaxreflow.types import Observation


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Same-noise error of one policy at one step count against its teacher's own sampler."""

    name: str
    num_steps: int
    frames: str
    relative_error: float


def relative_error(candidate: Float[np.ndarray, ...], reference: Float[np.ndarray, ...]) -> float:
    """`|| candidate - reference || / || reference ||`, each norm over the whole set."""
    return float(np.linalg.norm(candidate - reference) / np.linalg.norm(reference))


def observations(
    source: TrainingSource, positions: Sequence[int], batch_size: int
) -> Iterator[tuple[Observation, int]]:
    """Batches of observations at these positions of `source`, each with the number of its valid examples."""
    for example, valid in iterate_once(source, batch_size, positions):
        yield to_batch(example).observation, valid


def paired_noise(policy: SmolVLAPolicy, count: int, noises: int, seed: int) -> Float[Array, "F M C A"]:
    """Noise `[frames, noises, C, A]` that depends on the frame's place only, so that all policies get the same."""
    return flow.sample_noise(
        jax.random.key(seed), (count, noises, policy.config.chunk_size, policy.config.max_action_dim)
    )


def chunks(
    policy: SmolVLAPolicy,
    source: TrainingSource,
    positions: Sequence[int],
    noise: Float[Array, "F M C A"],
    num_steps: int,
    *,
    batch_size: int = 16,
) -> Float[np.ndarray, "F M C d"]:
    """The policy's normalised actions at these frames from the given noise, real dims only."""
    out = []
    for i, (observation, valid) in enumerate(observations(source, positions, batch_size)):
        part = noise[i * batch_size : i * batch_size + valid]
        padded = jnp.concatenate([part, jnp.zeros((batch_size - valid, *part.shape[1:]))])
        sampled = sample_chunks(
            policy.params, observation, padded, config=policy.checkpoint.config, num_steps=num_steps
        )
        out.append(np.asarray(sampled)[:valid, ..., : policy.config.action_dim])
    return np.concatenate(out)


def compare(
    teacher: SmolVLAPolicy,
    student: SmolVLAPolicy,
    source: TrainingSource,
    frame_sets: dict[str, Sequence[int]],
    *,
    num_steps: Sequence[int] = (2, 1),
    noises: int = 4,
    seed: int = 0,
) -> list[Fidelity]:
    """Same-noise errors to the teacher at its own step count, for teacher and student at `num_steps`, on every set of frames."""
    rows = []
    for frames, positions in frame_sets.items():
        noise = paired_noise(teacher, len(positions), noises, seed)
        reference = chunks(teacher, source, positions, noise, teacher.config.num_steps)
        for name, policy in (("teacher", teacher), ("student", student)):
            for steps in num_steps:
                error = relative_error(chunks(policy, source, positions, noise, steps), reference)
                rows.append(Fidelity(name, steps, frames, error))
    return rows
