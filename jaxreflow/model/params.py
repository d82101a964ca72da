"""The parameter tree: its paths and shapes, its trainable part, and the dtypes that it is kept in."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreflow.model.config import ModelConfig
from jaxreflow.model.smolvla import init_params
from jaxreflow.model.types import Params

ParamPath = tuple[str, ...]
PROJECTIONS = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
PARTS: Mapping[str, tuple[str, ...]] = {
    "expert": ("expert", *PROJECTIONS),
    "connector": ("connector",),
    "language": ("text_model",),
    "vision": ("vision_model",),
}
"""Parts of the network that are trained or frozen together, and their names in the parameter tree."""


@functools.cache
def param_shapes(config: ModelConfig) -> dict[ParamPath, tuple[int, ...]]:
    """Shape of every parameter of the network by its path; nothing is computed."""
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


def in_parts(parts: Collection[str]) -> Callable[[ParamPath], bool]:
    """Whether a parameter belongs to one of these `PARTS` of the network."""
    trees = {name for part in parts for name in PARTS[part]}
    return lambda path: path[0] in trees


trainable_in_reflow = in_parts(["expert"])
"""Reflow's own trainable set, whatever the teacher trained: the expert and the five projections."""


def split_params(params: Params, trainable: Callable[[ParamPath], bool]) -> tuple[Params, Params]:
    """Two disjoint trees: (trainable, frozen)."""
    flat = flatten_dict(params)
    chosen = {path: leaf for path, leaf in flat.items() if trainable(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(chosen), unflatten_dict(rest)


def merge_params(trainable: Params, frozen: Params) -> Params:
    """The whole tree again."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trainable)})


def stored_in_compute_dtype(params: Params, config: ModelConfig) -> Params:
    """Parameters that are not trained, as every use of them needs them: in the compute dtype, where it casts them anyway.

    That changes no output. Norms and the projections between states, actions and tokens compute in float32 and keep it.
    """
    dtype = jnp.dtype(config.dtype)

    def in_float32(path: ParamPath) -> bool:
        return path[0] in PROJECTIONS or "norm" in path[-2]

    flat = flatten_dict(params).items()
    return unflatten_dict({path: x if in_float32(path) else x.astype(dtype, copy=False) for path, x in flat})


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of scalars in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())
