"""The losses of a run: flow matching on recorded actions, and reflow; `training.experimental` has one more.

A loss is a function `(trainable, frozen, teacher, batch, draws) -> (sum, count)`. Its value is the quotient over the whole
global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreflow import flow
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.layer_choice import ALL_LAYERS, LayerChoice
from jaxreflow.model.params import merge_params
from jaxreflow.model.types import Batch, Context, Params


class Draws(NamedTuple):
    """What is random in the loss of a batch: M noises per observation, T times per noise, and changes of its images."""

    noise: Float[Array, "B M C A"]
    t: Float[Array, "B N"]
    """N = M * T times."""
    changes: Any = None
    """By camera, of `training.augmentation.draw_changes`; None: images stay as they are."""


LossFunction: TypeAlias = Callable[[Params, Params, Params, Batch, Draws], tuple[Array, Array]]

# What `observe` reads: where none of it is trained, teacher and student share the context.
CONTEXT_PARAMS = ("vision_model", "connector", "text_model")
# Named scope of what only the teacher computes, in profiles and in `run.arithmetic`.
TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a teacher and its student, and which of the teacher's layers the student starts from."""

    teacher: ModelConfig
    student: ModelConfig
    layers: LayerChoice = ALL_LAYERS

    def params(self, trainable: Params, frozen: Params, teacher: Params) -> tuple[Params, Params]:
        """Both whole trees; `frozen` and `teacher` have the teacher's paths, `trainable` the student's."""
        return merge_params(teacher, frozen), merge_params(trainable, self.layers.view(frozen, self.student))

    def share_context(self, trainable: Params) -> bool:
        """Whether both see an observation alike: one network, and nothing that `observe` reads is trained."""
        return self.teacher == self.student and not set(CONTEXT_PARAMS) & set(trainable)


def finetune_loss(config: ModelConfig, *, action_dim: int, reduction: str) -> LossFunction:
    """Flow matching on recorded actions; `teacher` is not looked at."""

    def loss(trainable: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        del teacher
        params = merge_params(trainable, frozen)
        context = observe(params, batch.observation, config=config)
        field = _field(params, context, batch, config)
        actions = jnp.broadcast_to(batch.actions[:, None], draws.noise.shape)
        is_pad = jnp.asarray(batch.action_is_pad)
        return flow.flow_matching_loss(
            field, actions, draws.noise, draws.t, is_pad, action_dim=action_dim, reduction=reduction
        )

    return loss


def reflow_loss(
    networks: Networks,
    *,
    teacher_steps: int,
    solver: flow.Solver = flow.euler,
    objective: flow.Objective = flow.mean_square,
    dims: int | None = None,
) -> LossFunction:
    """Flow matching on pairs (noise, endpoint), where the teacher's solver carries the noise to the endpoint.

    The endpoint keeps all padded action dims: they are part of what the sampler integrates. `dims` are those that the
    student is held to (None: all).
    """

    def loss(trainable: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        own, student = velocity_fields(trainable, frozen, teacher, batch, networks)
        endpoint = solver(own, draws.noise, teacher_steps)
        return flow.reflow_loss(student, endpoint, draws.noise, draws.t, objective=objective, dims=dims)

    return loss


def velocity_fields(
    trainable: Params, frozen: Params, teacher: Params, batch: Batch, networks: Networks
) -> tuple[flow.Velocity, flow.Velocity]:
    """The teacher's and the student's velocity fields in the batch's observations; one look serves both where they see alike."""
    first, second = networks.params(trainable, frozen, teacher)
    if networks.share_context(trainable):
        own = seen = jax.lax.stop_gradient(observe(first, batch.observation, config=networks.teacher))
    else:
        with jax.named_scope(TEACHER):
            seen = observe(first, batch.observation, config=networks.teacher)
        own = observe(second, batch.student_observation, config=networks.student)
    with jax.named_scope(TEACHER):
        teachers = _field(first, seen, batch, networks.teacher)
    return jax.named_scope(TEACHER)(teachers), _field(second, own, batch, networks.student)


def _field(params: Params, context: Context, batch: Batch, config: ModelConfig) -> flow.Velocity:
    """The velocity field that these weights see in the batch's observations."""
    memory = memorise(params, context, jnp.asarray(batch.observation.state), config=config)
    return lambda x_t, t: velocity(params, memory, x_t, t, config=config)
