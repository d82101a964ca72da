"""The short form of an evaluation, while a student is trained: its same-noise error to the teacher in one and two steps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from jaxreflow import flow
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.pretrained import Checkpoint
from jaxreflow.sharding import batch_sharding, make_replicated, replicated
from jaxreflow.training import shares_context
from jaxreflow.types import Batch, Memory, Params
from jaxreflow.weights import merge_params

STEPS = (1, 2)
Sums = dict[str, tuple[Array, Array]]


def make_error_step(
    checkpoint: Checkpoint, frozen: Params, teacher: Params, mesh: Mesh, *, reference_steps: int, seed: int
) -> Callable[[Params, Batch, int], Sums]:
    """The jitted `(trainable, batch, index) -> {"student@1_error": (error, reference), ...}`, squared norms over the batch.

    Real action dims in normalised units, one noise per observation, the same every time; the reference is the teacher in
    `reference_steps` Euler steps.
    """
    config, policy = checkpoint.config, checkpoint.policy
    shared = shares_context(teacher)
    key = make_replicated(lambda: jax.random.fold_in(jax.random.key(seed), 1), mesh)

    def integrate(params: Params, memory: Memory, noise: Array, steps: int) -> Array:
        chunks = flow.euler(lambda x, t: velocity(params, memory, x, t, config=config), noise, steps)
        return chunks[..., : policy.action_dim]

    def errors(trainable: Params, frozen: Params, teacher: Params, batch: Batch, key: Array) -> Sums:
        shape = (batch.index.shape[0], 1, config.chunk_size, config.max_action_dim)
        noise = jax.lax.with_sharding_constraint(flow.sample_noise(key, shape), batch_sharding(mesh))
        state = jnp.asarray(batch.observation.state)
        first, second = merge_params(teacher, frozen), merge_params(trainable, frozen)
        context = observe(first, batch.observation, config=config)
        goal = integrate(first, memorise(first, context, state, config=config), noise, reference_steps)
        own = context if shared else observe(second, batch.observation, config=config)
        memory = memorise(second, own, state, config=config)
        reference = jnp.sum(jnp.square(goal))
        return {
            f"student@{steps}_error": (jnp.sum(jnp.square(integrate(second, memory, noise, steps) - goal)), reference)
            for steps in STEPS
        }

    step = jax.jit(errors, out_shardings=replicated(mesh))
    return lambda trainable, batch, index: step(trainable, frozen, teacher, batch, jax.random.fold_in(key, index))
