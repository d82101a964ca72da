"""A network of a few thousand parameters, for tests that need one but no checkpoint."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxreflow.model import init_params
from jaxreflow.model.config import ModelConfig, TextConfig, VisionConfig, VLMConfig
from jaxreflow.model.types import Observation, Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import Feature, PolicyConfig

TEXT = TextConfig(
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=4,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=8,
    vocab_size=40,
)
VISION = VisionConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
VLM = VLMConfig(TEXT, VISION, scale_factor=2, fake_image_token_id=30, global_image_token_id=31)
CAMERA = "observation.images.top"
WRIST = "observation.images.wrist"


def tiny_policy(**changes: Any) -> PolicyConfig:
    """A policy on `VLM`: two cameras, 5 state and 4 action dims, chunks of 6."""
    inputs = {
        CAMERA: Feature("VISUAL", (3, 24, 32)),
        WRIST: Feature("VISUAL", (3, 32, 32)),
        "observation.state": Feature("STATE", (5,)),
    }
    policy = PolicyConfig(
        input_features=inputs,
        output_features={"action": Feature("ACTION", (4,))},
        chunk_size=6,
        n_action_steps=3,
        max_state_dim=8,
        max_action_dim=7,
        resize_imgs_with_padding=(32, 32),
        tokenizer_max_length=5,
        num_vlm_layers=4,
    )
    return dataclasses.replace(policy, **changes)


def tiny_model(policy: PolicyConfig | None = None, vlm: VLMConfig = VLM, **options: Any) -> tuple[ModelConfig, Params]:
    """Architecture and random parameters in which no norm is one and no bias is zero."""
    config = network_of(policy or tiny_policy(), vlm, **options)
    params = jax.jit(init_params, static_argnames="config")(jax.random.key(0), config=config)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return config, jax.tree.unflatten(structure, moved)


def tiny_observation(batch: int = 2, seed: int = 0) -> Observation:
    """Random images of two sizes, tokens of unequal length, and a state; the wrist camera is absent in the last example."""
    rng = np.random.default_rng(seed)
    present = np.ones(batch, bool)
    wrist = present.copy()
    wrist[-1] = False
    lengths = 3 + np.arange(batch) % 2
    return Observation(
        images={
            CAMERA: rng.integers(0, 256, (batch, 24, 32, 3), np.uint8),
            WRIST: rng.integers(0, 256, (batch, 32, 32, 3), np.uint8),
        },
        image_mask={CAMERA: present, WRIST: wrist},
        tokens=rng.integers(3, 30, (batch, 5)).astype(np.int32),
        token_mask=np.arange(5)[None] < lengths[:, None],
        state=np.pad(rng.normal(size=(batch, 5)).astype(np.float32), ((0, 0), (0, 3))),
    )
