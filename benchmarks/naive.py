"""Reflow as a straightforward port of LeRobot's training would run it, from the same layers and on the same weights.

The teacher is a sampler of its own. It has its own copy of the VLM, encodes every observation again, and projects the expert's
memory again in every Euler step. The student encodes the observation a second time, with the state among the prefix's rows. So
its gradient runs through all rows of the language model. Each noise has a copy of its observation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxreflow import flow
from jaxreflow.model import embed_images, remember, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.language import text_layers
from jaxreflow.model.layers import apply, projection
from jaxreflow.model.params import merge_params
from jaxreflow.model.smolvla import embed_prefix
from jaxreflow.model.types import Batch, Context, Observation, Params
from jaxreflow.training.losses import Draws, LossFunction


def joint_context(params: Params, observation: Observation, *, config: ModelConfig) -> Context:
    """The context of images, language and state, all rows of which pass the text layers together.

    The state's row sees all others, and none of them sees it. This is the same function as `encode`, then `extend`.
    """
    seen = jax.tree.map(jnp.asarray, observation)
    image_tokens = embed_images(params, seen.images, config=config)
    x, mask = embed_prefix(params, image_tokens, seen.image_mask, seen.tokens, seen.token_mask, config=config)
    state = apply(projection(config.text.hidden_size), params["state_proj"], seen.state)[:, None]
    x = jnp.concatenate([x, state.astype(x.dtype)], axis=1)
    mask = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
    row = jnp.arange(mask.shape[1])
    visible = mask[:, None, :] & ((row[:, None] == row[-1]) | (row[None, :] < row[-1]))
    kv = text_layers(params["text_model"], x, jnp.cumsum(mask, axis=1) - 1, visible, None, config)
    return Context(kv=kv, mask=mask, count=jnp.sum(mask, axis=1, dtype=jnp.int32))


def sampler_velocity(params: Params, context: Context, x_t: Array, t: Array, *, config: ModelConfig) -> Array:
    """One evaluation of a sampler that keeps only the VLM's K/V."""
    return velocity(params, remember(params, context, config=config), x_t, t, config=config)


def naive_loss(config: ModelConfig, *, teacher_steps: int) -> LossFunction:
    """`training.reflow_loss` in naive form, with the same value and gradient. `teacher` is the whole set of its parameters."""

    def loss(trainable: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        repeats = draws.noise.shape[1]
        observation = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), repeats, axis=0), batch.observation)
        noise, t = draws.noise.reshape(-1, 1, *draws.noise.shape[2:]), draws.t.reshape(-1, 1)
        context = joint_context(teacher, observation, config=config)
        endpoint = flow.euler(
            lambda x_t, t: sampler_velocity(teacher, context, x_t, t, config=config), noise, teacher_steps
        )
        student = merge_params(trainable, frozen)
        memory = remember(student, joint_context(student, observation, config=config), config=config)
        return flow.reflow_loss(lambda x_t, t: velocity(student, memory, x_t, t, config=config), endpoint, noise, t)

    return loss
