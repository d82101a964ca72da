"""From a policy's config.json and its VLM to the network that they make."""

from __future__ import annotations

import math

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.policy.config import PolicyConfig


def network_of(
    policy: PolicyConfig, vlm: VLMConfig, *, dtype: str = "float32", vision_positions: str = "exact"
) -> ModelConfig:
    """The architecture of `policy` on `vlm`.

    Raises:
        ConfigError: layers, heads or images do not fit each other; the message names the field.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f'`dtype` must be "float32" or "bfloat16", found {dtype!r}')
    if vision_positions not in ("exact", "shifted"):
        raise ConfigError(f'`vision_positions` must be "exact" or "shifted", found {vision_positions!r}')
    layers = policy.num_vlm_layers if policy.num_vlm_layers > 0 else vlm.text.num_hidden_layers
    layers = min(layers, vlm.text.num_hidden_layers)
    kinds = _expert_layer_kinds(policy, layers)
    width = int(vlm.text.hidden_size * policy.expert_width_multiplier)
    if width < 2 or width % 2:
        raise ConfigError(
            f"config.json: `expert_width_multiplier` ({policy.expert_width_multiplier}) of the VLM's {vlm.text.hidden_size} "
            f"must give an even width, for sines and cosines of the time; found {width}"
        )
    _check_images(policy, vlm)
    return ModelConfig(
        text=vlm.text,
        vision=vlm.vision,
        scale_factor=vlm.scale_factor,
        fake_image_token_id=vlm.fake_image_token_id,
        global_image_token_id=vlm.global_image_token_id,
        num_vlm_layers=layers,
        expert_layer_kinds=kinds,
        expert_hidden_size=width,
        expert_intermediate_size=256 * math.ceil(4 * int(2 * width / 3) / 256),
        visual_keys=policy.visual_keys,
        empty_cameras=policy.empty_cameras,
        add_image_special_tokens=policy.add_image_special_tokens,
        resize_imgs_with_padding=policy.resize_imgs_with_padding,
        max_state_dim=policy.max_state_dim,
        max_action_dim=policy.max_action_dim,
        chunk_size=policy.chunk_size,
        min_period=policy.min_period,
        max_period=policy.max_period,
        dtype=dtype,
        vision_positions=vision_positions,
    )


def layer_kinds(policy: PolicyConfig, layers: int) -> tuple[str, ...]:
    """How LeRobot lets the expert look at each of the VLM's layers: "self" or "cross"."""
    every, crosses = policy.self_attn_every_n_layers, "cross" in policy.attention_mode
    return tuple("cross" if crosses and not (every > 0 and i % every == 0) else "self" for i in range(layers))


def _expert_layer_kinds(policy: PolicyConfig, layers: int) -> tuple[str, ...]:
    """ "self" or "cross" for each expert layer, as LeRobot decides it; what LeRobot itself cannot run is refused."""
    every = policy.self_attn_every_n_layers
    count = policy.num_expert_layers if policy.num_expert_layers > 0 else layers
    if layers % count:
        raise ConfigError(f"config.json: `num_expert_layers` ({count}) must divide the VLM's {layers} layers")
    # LeRobot takes the attention's kind from the VLM layer's index but shapes the expert's projections by its own index.
    stride, kinds = layers // count, layer_kinds(policy, layers)
    lonely_self = any(kind == "self" and i % stride for i, kind in enumerate(kinds))
    if stride > 1 and (lonely_self or kinds[::stride] != kinds[:count]):
        raise ConfigError(
            f"config.json: `num_expert_layers` ({count}) below the VLM's {layers} layers needs cross-attention in every layer "
            f'(`self_attn_every_n_layers` 0 and `attention_mode` "cross_attn"); found {every} and {policy.attention_mode!r}, which '
            "LeRobot cannot run either"
        )
    return kinds[:count]


def _check_images(policy: PolicyConfig, vlm: VLMConfig) -> None:
    patch, shuffle = vlm.vision.patch_size, vlm.scale_factor
    size = policy.resize_imgs_with_padding
    if size is not None and (
        size[0] != size[1] or not patch <= size[0] <= vlm.vision.image_size or (size[0] // patch) % shuffle
    ):
        raise ConfigError(
            f"config.json: `resize_imgs_with_padding` {tuple(size)} must be square, at most the VLM's image size "
            f"{vlm.vision.image_size}, and its patch grid ({size[0]} // {patch}) a multiple of the pixel shuffle's factor {shuffle}"
        )
    if policy.add_image_special_tokens and min(vlm.fake_image_token_id, vlm.global_image_token_id) < 0:
        raise ConfigError(
            "config.json: `add_image_special_tokens` is true but the VLM's tokenizer has no "
            "<fake_token_around_image> or <global-img>"
        )
