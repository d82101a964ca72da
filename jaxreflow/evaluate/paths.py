"""How chunks move from noise to action: Euler paths of the same noises, in the plane where the teacher's chunks differ most."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxreflow import flow, model
from jaxreflow.evaluate.sampling import Candidate, Trial
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Memory, Params

NOISES = 32


@dataclasses.dataclass(frozen=True)
class Example:
    """One frame: a camera's image, its instruction, and by policy M paths in the plane and M chunks in normalised units."""

    image: UInt8[np.ndarray, "H W 3"]
    task: str
    paths: Mapping[str, Float[np.ndarray, "M T 2"]]
    chunks: Mapping[str, Float[np.ndarray, "M C d"]]


@functools.partial(jax.jit, static_argnames=("config", "num_steps"))
def _euler_path(
    params: Params, memory: Memory, noise: Float[Array, "B M C A"], *, config: ModelConfig, num_steps: int
) -> Float[Array, "T B M C A"]:
    """The states of the sampler, noise first."""
    times = jnp.asarray(flow.euler_times(num_steps))

    def step(x: Array, t: Array) -> tuple[Array, Array]:
        v = model.velocity(params, memory, x, jnp.broadcast_to(t, x.shape[:-2]), config=config)
        x = x - v / num_steps
        return x, x

    return jnp.concatenate([noise[None], jax.lax.scan(step, noise, times)[1]])


def plane_of(points: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d 2"]]:
    """Mean and the first two principal directions."""
    centre = points.mean(0)
    directions = np.linalg.svd(points - centre, full_matrices=False)[2][:2].T
    missing = 2 - directions.shape[1]
    return centre, np.pad(directions, ((0, 0), (0, missing)))


def sample_examples(trial: Trial, policies: Sequence[Candidate], positions: Sequence[int]) -> list[Example]:
    """Paths and chunks of these policies, the reference among them, from the same noises at each of these frames."""
    config, real, source = trial.config, trial.action_dim, trial.source
    examples = []
    for part in trial.batches(positions, 1, task="example paths"):
        key = jax.random.key(trial.settings.seed + 4)
        noise = flow.sample_noise(key, (1, NOISES, config.chunk_size, config.max_action_dim))
        states = {}
        for candidate in policies:
            subject, steps = candidate.subject, candidate.num_steps
            memory = part.memories[subject.name]
            path = _euler_path(subject.params, memory, noise, config=subject.config, num_steps=steps)
            states[candidate.label] = np.asarray(path)[:, 0, ..., :real]
        centre, plane = plane_of(states[trial.reference.label][-1].reshape(NOISES, -1))
        paths = {
            label: np.moveaxis((s.reshape(*s.shape[:2], -1) - centre) @ plane, 0, 1) for label, s in states.items()
        }
        dataset = source.dataset
        camera = next(iter(source.cameras.values()))
        frame = dataset.frame(int(source.frames[part.positions[0]]), [camera])
        examples.append(Example(frame[camera], frame["task"], paths, {k: s[-1] for k, s in states.items()}))
    return examples
