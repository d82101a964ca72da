"""The short form of an evaluation, while a policy is trained: how far its chunks are from what it is to imitate.

Every error is a sum over the whole global batch and what it is divided by, so that batches, devices and processes add up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxreflow import flow
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.params import merge_params
from jaxreflow.model.types import Batch, Memory, Params
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.config import ReflowConfig, RunConfig
from jaxreflow.run.programs import Weights, networks_of
from jaxreflow.support.mesh import batch_sharding, make_replicated, replicated

STEPS = (1, 2)
Sums = dict[str, tuple[Array, Array]]
ErrorStep = Callable[[Params, Batch, int], Sums]


@dataclasses.dataclass(frozen=True)
class ActionUnits:
    """Names of the real action dims, and how many of the dataset's units one normalised unit is in each."""

    names: tuple[str, ...]
    scale: Float[np.ndarray, " d"]


def action_units(transforms: Transforms, names: tuple[str, ...]) -> ActionUnits:
    """The units of a policy's actions, off the two ends of [-1, 1]: every normalisation of actions is affine, Aloha's too."""
    ends = np.array([[-1.0], [1.0]], np.float32) * np.ones(len(names), np.float32)
    low, high = transforms.unnormalize_action(ends).astype(np.float64)
    return ActionUnits(names, (high - low) / 2)


def make_error_step(
    config: RunConfig, saved: SavedPolicy, weights: Weights, mesh: Mesh, units: ActionUnits
) -> ErrorStep:
    """The jitted `(trainable, batch, index) -> {name: (sum of squares, divisor)}`; `root_errors` makes errors of the quotients.

    A student is compared with its teacher, any other policy with the recorded actions. `NAME@N_error` is relative: squared norms
    over the chunk's real action dims in normalised units. `NAME@N_error/DIM` is a mean square in the dataset's units. One noise
    per observation, the same every time.
    """
    if config.distillation is not None:
        return _student_errors(config.distillation, saved, weights, mesh, units)
    return _policy_errors(config, saved, weights, mesh, units)


def root_errors(means: Mapping[str, float]) -> dict[str, float]:
    """Scores of evaluations, in which mean squares of errors become errors."""
    return {
        name: math.sqrt(mean) if name.partition("/")[0].endswith("_error") else mean for name, mean in means.items()
    }


def _student_errors(
    config: ReflowConfig, saved: SavedPolicy, weights: Weights, mesh: Mesh, units: ActionUnits
) -> ErrorStep:
    """Same-noise errors to the teacher's chunks, in one and two steps."""
    networks = networks_of(saved)
    shared = networks.share_context(weights.start)
    reference_steps = config.reference_steps(saved.policy.num_steps)
    imitated, integrate, draw = _sampler(saved.original), _sampler(saved), _draw(saved, mesh)

    def errors(trainable: Params, frozen: Params, teacher: Params, batch: Batch, key: Array) -> Sums:
        noise, state = draw(batch, key), jnp.asarray(batch.observation.state)
        first, second = networks.params(trainable, frozen, teacher)
        context = observe(first, batch.observation, config=networks.teacher)
        goal = imitated(first, memorise(first, context, state, config=networks.teacher), noise, reference_steps)
        own = context if shared else observe(second, batch.student_observation, config=networks.student)
        memory = memorise(second, own, state, config=networks.student)
        valid = jnp.ones(goal.shape[:-1], bool)
        sums: Sums = {}
        for steps in STEPS:
            chunks = integrate(second, memory, noise, steps)
            sums |= _error_sums(f"student@{steps}_error", chunks, goal, valid, units)
        return sums

    step = jax.jit(errors, out_shardings=replicated(mesh))
    key = _key(config, mesh)
    return lambda trainable, batch, index: step(
        trainable, weights.frozen, weights.teacher, batch, jax.random.fold_in(key, index)
    )


def _policy_errors(
    config: RunConfig, saved: SavedPolicy, weights: Weights, mesh: Mesh, units: ActionUnits
) -> ErrorStep:
    """Errors to the recorded actions inside the episode, in as many steps as the policy will take."""
    network = saved.config
    steps = config.num_steps or saved.policy.num_steps
    integrate, draw = _sampler(saved), _draw(saved, mesh)

    def errors(trainable: Params, frozen: Params, batch: Batch, key: Array) -> Sums:
        params = merge_params(trainable, frozen)
        context = observe(params, batch.observation, config=network)
        memory = memorise(params, context, jnp.asarray(batch.observation.state), config=network)
        chunks = integrate(params, memory, draw(batch, key), steps)
        recorded = jnp.asarray(batch.actions)[:, None, :, : chunks.shape[-1]]
        valid = ~jnp.asarray(batch.action_is_pad)[:, None]
        return _error_sums(f"policy@{steps}_error", chunks, recorded, valid, units)

    step = jax.jit(errors, out_shardings=replicated(mesh))
    key = _key(config, mesh)
    return lambda trainable, batch, index: step(trainable, weights.frozen, batch, jax.random.fold_in(key, index))


def _error_sums(name: str, chunks: Array, goal: Array, valid: Array, units: ActionUnits) -> Sums:
    """Of chunks and goal `[B, M, C, d]` where `valid` `[B, M, C]`."""
    over = tuple(range(valid.ndim))
    squares = jnp.sum(jnp.where(valid[..., None], jnp.square(chunks - goal), 0.0), axis=over)
    reference = jnp.sum(jnp.where(valid[..., None], jnp.square(goal), 0.0))
    count = jnp.sum(valid, dtype=jnp.float32)
    physical = squares * jnp.asarray(np.square(units.scale), jnp.float32)
    per_dim = {f"{name}/{dim}": (physical[i], count) for i, dim in enumerate(units.names)}
    return {name: (jnp.sum(squares), reference), **per_dim}


def _sampler(saved: SavedPolicy) -> Callable[[Params, Memory, Array, int], Array]:
    config, dims = saved.config, saved.policy.action_dim

    def integrate(params: Params, memory: Memory, noise: Array, steps: int) -> Array:
        return flow.euler(lambda x, t: velocity(params, memory, x, t, config=config), noise, steps)[..., :dims]

    return integrate


def _draw(saved: SavedPolicy, mesh: Mesh) -> Callable[[Batch, Array], Array]:
    chunk = (saved.config.chunk_size, saved.config.max_action_dim)

    def draw(batch: Batch, key: Array) -> Array:
        noise = flow.sample_noise(key, (batch.index.shape[0], 1, *chunk))
        return jax.lax.with_sharding_constraint(noise, batch_sharding(mesh))

    return draw


def _key(config: RunConfig, mesh: Mesh) -> Array:
    return make_replicated(lambda: jax.random.fold_in(jax.random.key(config.seed), 1), mesh)
