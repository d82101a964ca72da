"""Operations of a program's matrix products by part, counted from the shapes in it; nothing is compiled or run.

An operation is one multiplication or addition, so a product of `[m, k]` and `[k, n]` has 2mkn. Norms, softmax and other
elementwise work are not counted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreflow.model import init_params
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Observation
from jaxreflow.policy.sampling import sample_chunks
from jaxreflow.training.losses import TEACHER

VISION, LANGUAGE, FORWARD, BACKWARD, OPTIMIZER = (
    *("vision tower", "language model", "student, forward", "student, backward"),
    "optimizer",
)
# Of a call: the state's row, what the expert keeps of the context, and its Euler steps.
ACTING = "state and Euler steps"
PARTS = (VISION, LANGUAGE, TEACHER, FORWARD, BACKWARD, OPTIMIZER)
_OBSERVED = {"embed_images": VISION, "encode": LANGUAGE}


def operations(program: Any) -> dict[str, float]:
    """Operations by part, in the order of `PARTS`, of an update's jaxpr; what a shard of it does counts once."""
    found = dict.fromkeys(PARTS, 0.0)
    for scope, count in products(program):
        found[_part(scope)] += count
    return {part: count for part, count in found.items() if count}


def call_operations(config: ModelConfig, language_tokens: int, steps: int) -> dict[str, float]:
    """Operations by part of one call of a policy, for one observation of all its cameras."""
    width, height = config.resize_imgs_with_padding or (config.vision.image_size,) * 2
    observation = Observation(
        images={key: np.zeros((1, height, width, 3), np.uint8) for key in config.visual_keys},
        image_mask={key: np.ones(1, bool) for key in config.visual_keys},
        tokens=np.zeros((1, language_tokens), np.int32),
        token_mask=np.ones((1, language_tokens), bool),
        state=np.zeros((1, config.max_state_dim), np.float32),
    )

    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    noise = jnp.zeros((1, 1, config.chunk_size, config.max_action_dim))
    call = functools.partial(sample_chunks, config=config, num_steps=steps)
    found = {VISION: 0.0, LANGUAGE: 0.0, ACTING: 0.0}
    for scope, count in products(jax.make_jaxpr(call)(params, observation, noise).jaxpr):
        found[next((part for name, part in _OBSERVED.items() if name in scope), ACTING)] += count
    return found


def products(program: Any, scope: str = "", times: int = 1) -> Iterator[tuple[str, float]]:
    """The named scopes and the operations of every matrix product in a jaxpr, those in a loop as often as it runs."""
    for equation in program.eqns:
        parameters, here = equation.params, f"{scope}/{equation.source_info.name_stack}"
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), left = parameters["dimension_numbers"], equation.invars[0].aval
            yield here, 2.0 * times * equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)
        if equation.primitive.name == "conv_general_dilated":
            out, kernel = equation.outvars[0].aval, equation.invars[1].aval
            yield here, 2.0 * times * out.size * kernel.size / out.shape[-1]
        inside = [*parameters.get("branches", ())[:1]]  # of a choice by platform
        inside += [parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters]
        for part in inside:
            yield from products(getattr(part, "jaxpr", part), here, times * parameters.get("length", 1))


def _part(scope: str) -> str:
    if "transpose(" in scope:
        return BACKWARD
    if TEACHER in scope:
        return TEACHER
    observed = (part for name, part in _OBSERVED.items() if name in scope)
    # Only the loss is differentiated.
    return next(observed, FORWARD if "jvp(" in scope else OPTIMIZER)
