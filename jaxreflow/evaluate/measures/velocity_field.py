"""The field itself: its error against straight lines to the teacher's endpoints, and how straight its own paths are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreflow import flow, model
from jaxreflow.evaluate.measures.estimate import root_quotient
from jaxreflow.evaluate.sampling import Trial, noise_for, sample
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Memory, Params

TIMES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PATH_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Field:
    """One subject's velocities.

    `error[t][d]` is `|| v_t - (noise - endpoint) || / || noise - endpoint ||` at `x_t = t * noise + (1 - t) * endpoint`,
    where the endpoint is the teacher's at its own step count. `straightness[t]` is
    `E || (noise - x_0) - v(x_t, t) ||^2 / E || noise - x_0 ||^2` on the subject's own 50-step path to x_0, real dims.
    """

    name: str
    times: tuple[float, ...]
    error: tuple[tuple[float, ...], ...]
    """By t, then by padded dim: the real ones come first."""
    mean_error: float
    """Mean over t and real dims."""
    mean_padded_error: float | None
    """Mean over t and padded dims; None if there are none."""
    path_times: tuple[float, ...]
    straightness: tuple[float, ...]
    mean_straightness: float
    """Its mean over t, the integral; 0 is straight."""


@functools.partial(jax.jit, static_argnames="config")
def _squares(
    params: Params, memory: Memory, noise: Float[Array, "B M C A"], endpoint: Array, t: Array, *, config: ModelConfig
) -> Float[Array, "B A"]:
    """Sum of the squared error of the velocity per observation and dim."""
    errors = flow.squared_errors(
        lambda x_t, t: model.velocity(params, memory, x_t, t, config=config),
        endpoint,
        noise,
        jnp.broadcast_to(t, noise.shape[:2]),
    )
    return jnp.sum(errors, (1, 2))


def path_deviation(
    velocity: flow.Velocity, noise: Float[Array, "B M C A"], num_steps: int
) -> tuple[Float[Array, "T B A"], Float[Array, "B A"]]:
    """Squared distance of the velocity from the chord of its own path, by time and dim, and the chord's squared length.

    Positions and noises are summed.
    """
    times = jnp.asarray(flow.euler_times(num_steps))

    def step(x: Array, t: Array) -> tuple[Array, Array]:
        v = velocity(x, jnp.broadcast_to(t, x.shape[:-2]))
        return x - v / num_steps, v

    _, velocities = jax.lax.scan(step, noise, times)
    chord = jnp.mean(velocities, axis=0)
    return jnp.sum(jnp.square(velocities - chord), (2, 3)), jnp.sum(jnp.square(chord), (1, 2))


@functools.partial(jax.jit, static_argnames="config")
def _deviation(params: Params, memory: Memory, noise: Array, *, config: ModelConfig) -> tuple[Array, Array]:
    return path_deviation(lambda x, t: model.velocity(params, memory, x, t, config=config), noise, PATH_STEPS)


def measure_fields(trial: Trial, positions: Sequence[int]) -> list[Field]:
    """Velocity error and straightness of every subject on these frames, one noise each."""
    config, reference, subjects = trial.config, trial.reference, trial.subjects
    dims = config.max_action_dim
    error = {s.name: np.zeros((len(TIMES), dims)) for s in subjects}
    target = np.zeros(dims)
    deviation = {s.name: np.zeros((PATH_STEPS, dims)) for s in subjects}
    chord = {s.name: np.zeros(dims) for s in subjects}
    for part in trial.batches(positions, task="velocity fields"):
        noise = noise_for(part, 1, config, trial.settings.seed + 2)
        memory = part.memories[reference.subject.name]
        endpoint = sample(reference.subject.params, memory, noise, config=config, num_steps=reference.num_steps)
        target += np.sum(np.square(np.asarray(noise - endpoint)[: part.valid], dtype=np.float64), (0, 1, 2))
        for subject in subjects:
            own, name = part.memories[subject.name], subject.name
            for i, t in enumerate(TIMES):
                squares = _squares(subject.params, own, noise, endpoint, jnp.float32(t), config=subject.config)
                error[name][i] += np.asarray(squares)[: part.valid].sum(0, dtype=np.float64)
            squares, length = _deviation(subject.params, own, noise, config=subject.config)
            deviation[name] += np.asarray(squares)[:, : part.valid].sum(1, dtype=np.float64)
            chord[name] += np.asarray(length)[: part.valid].sum(0, dtype=np.float64)
    return [_field(s.name, error[s.name], target, deviation[s.name], chord[s.name], trial.action_dim) for s in subjects]


def _field(
    name: str, error: np.ndarray, target: np.ndarray, deviation: np.ndarray, chord: np.ndarray, real: int
) -> Field:
    errors = root_quotient(error, np.broadcast_to(target, error.shape))
    straightness = deviation[:, :real].sum(1) / chord[:real].sum()
    return Field(
        name=name,
        times=TIMES,
        error=tuple(map(tuple, errors.tolist())),
        mean_error=float(errors[:, :real].mean()),
        mean_padded_error=float(errors[:, real:].mean()) if errors.shape[1] > real else None,
        path_times=tuple(flow.euler_times(PATH_STEPS).tolist()),
        straightness=tuple(straightness.tolist()),
        mean_straightness=float(straightness.mean()),
    )
