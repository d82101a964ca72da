"""Vision tower and connector: images to image tokens."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig, VisionConfig
from jaxreflow.model.layers import Rows, apply, attend, dense, merge_queries, split_queries, split_rows
from jaxreflow.model.types import Params

CPU_SCORE_BYTES = 32 << 20
"""Attention scores, in float32, up to which all heads are taken at once: a common size of the last-level cache."""


def interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights `[size_out, size_in]` of 1-d linear interpolation as torch does it: half-pixel centres, no antialiasing.

    Source coordinates agree with torch's to the last bit: its compiled loop has a fused multiply-add, which rounds to float32
    once; the product is exact in float64. Two roundings would be off by up to 3e-6 in the image.
    """
    scale = np.float64(np.float32(size_in) / np.float32(size_out))
    source = (scale * (np.arange(size_out) + 0.5) - 0.5).astype(np.float32)
    source = np.maximum(source, np.float32(0.0))
    low = np.minimum(source.astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    weight = source - low.astype(np.float32)
    matrix = np.zeros((size_out, size_in), np.float32)
    rows = np.arange(size_out)
    matrix[rows, low] += np.float32(1.0) - weight
    matrix[rows, high] += weight
    return matrix


def fitted_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image that is scaled to fit `size` (width, height) keeping the ratio, as LeRobot rounds them."""
    ratio = max(width / size[0], height / size[1])
    return int(height / ratio), int(width / ratio)


def resize_with_pad(image: Float[Array, "B H W 3"], size: tuple[int, int]) -> Float[Array, "B h w 3"]:
    """Scales to fit `size` (width, height) keeping the ratio, and pads with 0 on the left and top, as LeRobot."""
    width, height = size
    _, h, w, _ = image.shape
    new_h, new_w = fitted_size(h, w, size)
    if (new_h, new_w) != (h, w):
        image = jnp.einsum("bhwc,vw->bhvc", image, interpolation_matrix(w, new_w), precision="highest")
        image = jnp.einsum("bhvc,uh->buvc", image, interpolation_matrix(h, new_h), precision="highest")
    return jnp.pad(image, ((0, 0), (max(0, height - new_h), 0), (max(0, width - new_w), 0), (0, 0)))


def to_pixels(image: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], config: ModelConfig) -> Float[Array, "B h w 3"]:
    """uint8, or float in [0, 1], to the tower's float32 input in [-1, 1], at the policy's size."""
    if image.dtype == jnp.uint8:
        image = image.astype(jnp.float32) / 255.0
    image = image.astype(jnp.float32)
    if config.resize_imgs_with_padding is not None:
        image = resize_with_pad(image, config.resize_imgs_with_padding)
    _check_grid(image.shape[1], image.shape[2], config)
    return image * 2.0 - 1.0


def _check_grid(height: int, width: int, config: ModelConfig) -> None:
    patch, shuffle = config.vision.patch_size, config.scale_factor
    if height != width or (height // patch) % shuffle or height > config.vision.image_size:
        raise ConfigError(
            f"an image of {width} x {height} does not fit the vision tower: expected a square of at most "
            f"{config.vision.image_size} pixels whose patch grid (patch {patch}) is a multiple of {shuffle}; set "
            "`resize_imgs_with_padding` in config.json"
        )


def position_ids(side: int, table_side: int, *, shifted: bool) -> np.ndarray:
    """Rows `[side * side]` of the learned position table for a `side` x `side` patch grid, row-major.

    Patch k of n lies at k/n and takes the number of bucket edges j/table_side at or below it. `shifted` reproduces transformers
    4.57 in float32, which first multiplies k/n by (1 - 1e-6): for n = table_side that gives 0, 0, 1, ..., n - 2.
    """
    patches = np.arange(side)
    ids = patches * table_side // side
    if shifted:
        on_edge = (patches * table_side % side == 0) & (patches > 0)
        ids = ids - on_edge
    return (ids[:, None] * table_side + ids[None, :]).reshape(-1)


class VisionLayer(nn.Module):
    """One pre-norm encoder layer: LayerNorm, full attention, LayerNorm, tanh-GELU MLP; biases everywhere."""

    config: VisionConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.layer_norm1 = layer_norm(self.config, self.dtype)
        self.self_attn = VisionAttention(self.config, self.dtype)
        self.layer_norm2 = layer_norm(self.config, self.dtype)
        self.mlp = VisionMLP(self.config, self.dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionAttention(nn.Module):
    """Full multi-head attention over the patches."""

    config: VisionConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, dense(self.config.hidden_size, self.dtype, use_bias=True))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        q = split_queries(self.q_proj(x), self.config.num_attention_heads, head_dim)
        rows = Rows(split_rows(self.k_proj(x), head_dim), split_rows(self.v_proj(x), head_dim))
        return self.out_proj(merge_queries(attend_by_head(q, rows)))


def attend_by_head(q: Float[Array, "B K G T H"], rows: Rows) -> Float[Array, "B K G T H"]:
    """`attend`; on a CPU one head after the other, as scores that leave its cache cost more than the products."""
    if 4 * (q.size // q.shape[-1]) * rows.k.shape[-2] <= CPU_SCORE_BYTES:
        return attend(q, rows)

    def one_by_one(q: Array, rows: Rows) -> Array:
        heads = jax.tree.map(lambda x: x.reshape(-1, 1, 1, *x.shape[2:]), (q, rows))
        return jax.lax.map(lambda head: attend(*head), heads).reshape(q.shape)

    return jax.lax.platform_dependent(q, rows, cpu=one_by_one, default=attend)


class VisionMLP(nn.Module):
    """Linear, tanh GELU, linear."""

    config: VisionConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.fc1 = dense(self.config.intermediate_size, self.dtype, use_bias=True)
        self.fc2 = dense(self.config.hidden_size, self.dtype, use_bias=True)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        # As one matrix: a CPU's products with the activation fused are slower on more axes.
        rows = x.reshape(-1, x.shape[-1])
        return self.fc2(nn.gelu(self.fc1(rows), approximate=True)).reshape(x.shape)


def layer_norm(config: VisionConfig, dtype: jnp.dtype) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses digits that parity with torch needs.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False)


def patch_embedding(config: VisionConfig, dtype: jnp.dtype) -> nn.Conv:
    patch = (config.patch_size, config.patch_size)
    return nn.Conv(config.hidden_size, patch, strides=patch, padding="VALID", dtype=dtype)


def vision_tower(params: Params, pixels: Float[Array, "B h w 3"], config: ModelConfig) -> Float[Array, "B P D"]:
    """SigLIP-style tower: patches, learned positions, encoder layers, post layer norm."""
    vision, dtype = config.vision, jnp.dtype(config.dtype)
    x = apply(patch_embedding(vision, dtype), params["patch_embedding"], pixels)
    side = x.shape[1]
    ids = position_ids(side, vision.image_size // vision.patch_size, shifted=config.vision_positions == "shifted")
    x = x.reshape(x.shape[0], side * side, -1) + params["position_embedding"]["embedding"].astype(dtype)[ids]

    for i in range(vision.num_hidden_layers):
        x = apply(VisionLayer(vision, dtype), params["layers"][str(i)], x)
    return apply(layer_norm(vision, dtype), params["post_layernorm"], x)


def connector(params: Params, x: Float[Array, "B P D"], config: ModelConfig) -> Float[Array, "B p d"]:
    """Pixel shuffle by `scale_factor`, then one linear layer to the text width.

    Token (i, j) of the reduced grid holds, at channel (di * s + dj) * D + c, channel c of patch (s*i + di, s*j + dj).
    """
    s, side = config.scale_factor, math.isqrt(x.shape[1])
    x = x.reshape(x.shape[0], side // s, s, side // s, s, x.shape[2]).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(x.shape[0], (side // s) ** 2, -1)
    return apply(dense(config.text.hidden_size, jnp.dtype(config.dtype)), params["proj"], x)


def init_vision(key: Array, config: ModelConfig) -> tuple[Params, Params]:
    """Random parameters of tower and connector."""
    vision, dtype = config.vision, jnp.dtype(config.dtype)
    keys = jax.random.split(key, 4)
    x = jnp.zeros((1, 1, vision.hidden_size))
    layers = {
        str(i): VisionLayer(vision, dtype).init(k, x)["params"]
        for i, k in enumerate(jax.random.split(keys[1], vision.num_hidden_layers))
    }
    table = (vision.image_size // vision.patch_size) ** 2
    tower = {
        "patch_embedding": patch_embedding(vision, dtype).init(
            keys[0], jnp.zeros((1, vision.patch_size, vision.patch_size, 3))
        )["params"],
        "position_embedding": {"embedding": 0.02 * jax.random.normal(keys[2], (table, vision.hidden_size))},
        "layers": layers,
        "post_layernorm": layer_norm(vision, dtype).init(keys[0], x)["params"],
    }
    shuffled = jnp.zeros((1, 1, vision.hidden_size * config.scale_factor**2))
    return tower, {"proj": dense(config.text.hidden_size, dtype).init(keys[3], shuffled)["params"]}
