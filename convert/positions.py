"""Which ids LeRobot gives to the patches of an image, and how much the actions depend on them.

transformers 4.57 multiplies a patch's coordinate k/n by (1 - 1e-6) in the vision tower's dtype before it counts the
bucket edges below it: in float32 each edge is missed, in bfloat16 and float16 the factor rounds away. transformers 5
clamps instead, so that all dtypes give 0..n-1.
"""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Int

from jaxreflow.flow import sample_noise
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Observation
from jaxreflow.model.vision import position_ids
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.sampling import sample_chunks
from jaxreflow.policy.weights import read_params
from jaxreflow.support.safetensors_file import TensorFile

_OBSERVATIONS, _NOISES = 2, 4


@dataclasses.dataclass(frozen=True)
class SetUp:
    """A LeRobot set-up: transformers' version, what loads the tower in which dtype, and the ids per axis it gives."""

    transformers: str
    load_vlm_weights: bool
    dtype: str
    ids: list[int]


def set_ups(side: int, table_side: int) -> list[SetUp]:
    """LeRobot's set-ups for images of `side` patches per axis and a table of `table_side` positions per axis."""
    dtypes = ((False, "float32", np.float32), (True, "bfloat16", ml_dtypes.bfloat16))
    exact = position_ids(side, table_side, shifted=False)[:side].tolist()
    ids = {name: ids_4_57(side, table_side, np.dtype(kind)).tolist() for _, name, kind in dtypes}
    old = [SetUp("4.57", load, name, ids[name]) for load, name, _ in dtypes]
    return [*old, *(SetUp("5.4 and later", load, name, exact) for load, name, _ in dtypes)]


def ids_4_57(side: int, table_side: int, dtype: np.dtype) -> Int[np.ndarray, " side"]:
    """Ids per axis under transformers 4.57 in a dtype, by its own arithmetic."""
    coordinates = np.arange(side).astype(dtype) / np.asarray(side, dtype) * np.asarray(1 - 1e-6, dtype)
    edges = (np.arange(1, table_side) / table_side).astype(np.float32)
    return np.searchsorted(edges, coordinates.astype(np.float32), side="right")


def sides(config: ModelConfig, policy: PolicyConfig) -> tuple[int, int]:
    """Patches per axis of an image, and of the table of positions."""
    patch = config.vision.patch_size
    size = policy.resize_imgs_with_padding
    return (size[0] if size else config.vision.image_size) // patch, config.vision.image_size // patch


def change_in_actions(file: TensorFile, config: ModelConfig, policy: PolicyConfig) -> float:
    """Relative change of a sampled chunk, in the policy's units, if vision positions are shifted; random observations.

    The observations and their noise are always the same.
    """
    params = jax.tree.map(jax.numpy.asarray, read_params(file, config))
    observation = _observation(config, policy)
    noise = sample_noise(jax.random.key(1), (_OBSERVATIONS, _NOISES, config.chunk_size, config.max_action_dim))
    exact, shifted = (
        np.asarray(
            sample_chunks(
                params,
                observation,
                noise,
                config=dataclasses.replace(config, vision_positions=positions),
                num_steps=policy.num_steps,
            )
        )[..., : policy.action_dim]
        for positions in ("exact", "shifted")
    )
    return float(np.linalg.norm(shifted - exact) / np.linalg.norm(exact))


def _observation(config: ModelConfig, policy: PolicyConfig) -> Observation:
    random = np.random.default_rng(0)
    count, length = _OBSERVATIONS, policy.tokenizer_max_length
    state = random.normal(size=(count, policy.state_dim)).astype(np.float32)
    sizes = {key: policy.declared_size(key) for key in policy.camera_keys}
    return Observation(
        images={key: random.integers(0, 256, (count, *size, 3), np.uint8) for key, size in sizes.items()},
        image_mask={key: np.ones(count, np.bool_) for key in sizes},
        tokens=random.integers(0, config.text.vocab_size, (count, length)).astype(np.int32),
        token_mask=np.ones((count, length), np.bool_),
        state=np.pad(state, ((0, 0), (0, config.max_state_dim - policy.state_dim))),
    )
