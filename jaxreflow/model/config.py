"""The network's dimensions and architecture: hashable records, static under `jax.jit`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Dimensions of the VLM's text model; defaults are SmolVLM2-500M's."""

    hidden_size: int = 960
    intermediate_size: int = 2560
    num_hidden_layers: int = 32
    num_attention_heads: int = 15
    num_key_value_heads: int = 5
    head_dim: int = 64
    vocab_size: int = 49280
    rms_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Dimensions of the VLM's vision tower; defaults are SmolVLM2-500M's."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 512
    patch_size: int = 16
    layer_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """A SmolVLM: text model, vision tower, pixel-shuffle factor, and the ids of two special tokens (-1: unknown)."""

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    scale_factor: int = 4
    fake_image_token_id: int = 49189
    global_image_token_id: int = 49152


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network's architecture: hashable, static under `jax.jit`."""

    text: TextConfig
    vision: VisionConfig
    scale_factor: int
    fake_image_token_id: int
    global_image_token_id: int
    num_vlm_layers: int
    expert_layer_kinds: tuple[str, ...]
    expert_hidden_size: int
    expert_intermediate_size: int
    visual_keys: tuple[str, ...]
    empty_cameras: int
    add_image_special_tokens: bool
    resize_imgs_with_padding: tuple[int, int] | None
    max_state_dim: int
    max_action_dim: int
    chunk_size: int
    min_period: float
    max_period: float
    dtype: str = "float32"
    vision_positions: str = "exact"

    @property
    def layer_stride(self) -> int:
        """Every how many VLM layers an expert layer stands."""
        return self.num_vlm_layers // len(self.expert_layer_kinds)

    @property
    def num_context_layers(self) -> int:
        """VLM layers that run: the last one an expert layer reads is a K/V-only tail, later ones are dead weight."""
        return (len(self.expert_layer_kinds) - 1) * self.layer_stride + 1
