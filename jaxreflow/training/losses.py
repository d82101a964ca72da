"""The three losses of a run: flow matching on recorded actions, reflow, and reflow mixed with real pairs.

A loss is a function `(trainable, frozen, teacher, batch, noise, t) -> (sum, count)`; its value is the quotient over the
whole global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxreflow import flow
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import merge_params
from jaxreflow.model.types import Batch, Context, Observation, Params

LossFunction: TypeAlias = Callable[[Params, Params, Params, Batch, Array, Array], tuple[Array, Array]]

# What `observe` reads: where none of it is trained, teacher and student share the context.
CONTEXT_PARAMS = ("vision_model", "connector", "text_model")


def finetune_loss(config: ModelConfig, *, action_dim: int, reduction: str) -> LossFunction:
    """Flow matching on recorded actions; `teacher` is not looked at."""

    def loss(
        trainable: Params, frozen: Params, teacher: Params, batch: Batch, noise: Array, t: Array
    ) -> tuple[Array, Array]:
        del teacher
        params = merge_params(trainable, frozen)
        context = observe(params, batch.observation, config=config)
        field = _field(params, context, batch, config)
        actions = jnp.broadcast_to(batch.actions[:, None], noise.shape)
        is_pad = jnp.asarray(batch.action_is_pad)
        return flow.flow_matching_loss(field, actions, noise, t, is_pad, action_dim=action_dim, reduction=reduction)

    return loss


def reflow_loss(
    config: ModelConfig,
    *,
    teacher_steps: int,
    shared_context: bool,
    solver: flow.Solver = flow.euler,
    objective: flow.Objective = flow.mean_square,
    dims: int | None = None,
) -> LossFunction:
    """Flow matching on pairs (noise, endpoint), where the teacher's solver carries the noise to the endpoint.

    The endpoint keeps all padded action dims: they are part of what the sampler integrates. `dims` are those that the
    student is held to (None: all).
    """
    contexts = _one_context if shared_context else _two_contexts

    def loss(
        trainable: Params, frozen: Params, teacher: Params, batch: Batch, noise: Array, t: Array
    ) -> tuple[Array, Array]:
        teacher, student = merge_params(teacher, frozen), merge_params(trainable, frozen)
        teacher_context, student_context = contexts(teacher, student, batch.observation, config)
        endpoint = solver(_field(teacher, teacher_context, batch, config), noise, teacher_steps)
        field = _field(student, student_context, batch, config)
        return flow.reflow_loss(field, endpoint, noise, t, objective=objective, dims=dims)

    return loss


def mixed_reflow_loss(
    config: ModelConfig,
    *,
    teacher_steps: int,
    shared_context: bool,
    real_noises: int,
    action_dim: int,
    solver: flow.Solver = flow.euler,
    objective: flow.Objective = flow.mean_square,
    dims: int | None = None,
) -> LossFunction:
    """`reflow_loss` whose first `real_noises` pairs of every observation are recorded actions and their inverted noise.

    Real pairs count in the real action dims inside the episode only, whatever `dims` asks of the others.
    """
    contexts = _one_context if shared_context else _two_contexts

    def loss(
        trainable: Params, frozen: Params, teacher: Params, batch: Batch, noise: Array, t: Array
    ) -> tuple[Array, Array]:
        teacher, student = merge_params(teacher, frozen), merge_params(trainable, frozen)
        teacher_context, student_context = contexts(teacher, student, batch.observation, config)
        field = _field(teacher, teacher_context, batch, config)
        x_0, noise, valid = flow.mix_real_pairs(
            lambda x_0: flow.invert(solver, field, x_0, teacher_steps),
            solver(field, noise, teacher_steps),
            noise,
            jnp.asarray(batch.actions),
            jnp.asarray(batch.action_is_pad),
            real_noises=real_noises,
            action_dim=action_dim,
            dims=dims,
        )
        field = _field(student, student_context, batch, config)
        return flow.masked_reflow_loss(field, x_0, noise, t, valid, objective=objective)

    return loss


def _field(params: Params, context: Context, batch: Batch, config: ModelConfig) -> flow.Velocity:
    """The velocity field that these weights see in the batch's observations."""
    memory = memorise(params, context, jnp.asarray(batch.observation.state), config=config)
    return lambda x_t, t: velocity(params, memory, x_t, t, config=config)


def _one_context(
    teacher: Params, student: Params, observation: Observation, config: ModelConfig
) -> tuple[Context, Context]:
    del student
    context = jax.lax.stop_gradient(observe(teacher, observation, config=config))
    return context, context


def _two_contexts(
    teacher: Params, student: Params, observation: Observation, config: ModelConfig
) -> tuple[Context, Context]:
    return observe(teacher, observation, config=config), observe(student, observation, config=config)


def shares_context(trainable: Params) -> bool:
    """Whether teacher and student see an observation alike: nothing that `observe` reads is trained."""
    return not set(CONTEXT_PARAMS) & set(trainable)
