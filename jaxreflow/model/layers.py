"""What all three stacks share: rotary positions, masked attention, the gated MLP, and the time embedding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxreflow.model.config import TextConfig
from jaxreflow.model.types import Params

ROPE_BASE = 10_000.0
"""SmolVLA rotates with this constant, whatever `rope_theta` the VLM's config states (100,000 for SmolVLM2)."""

MASKED = -0.7 * float(np.finfo(np.float32).max)
"""Score of a masked row: finite, so that rows without any valid key stay finite too."""

KV: TypeAlias = tuple[Float[Array, "B K *M S H"], Float[Array, "B K *M S H"]]
"""Keys and values of one layer."""


def apply(module: nn.Module, params: Params, *inputs: Any, method: Callable[..., Any] | None = None) -> Any:
    """The module as a function of its parameters."""
    return module.apply({"params": params}, *inputs, method=method)


def dense(features: int, dtype: jnp.dtype, *, use_bias: bool = False) -> nn.Dense:
    """A linear layer that computes in `dtype` on float32 (or already cast) weights."""
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, kernel_init=nn.initializers.normal(0.02))


def projection(features: int) -> nn.Dense:
    """A float32 projection between states, actions and tokens, initialised as PyTorch's Linear."""
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nn.Dense(features, dtype=jnp.float32, kernel_init=init)


def rotate(x: Float[Array, "B *heads T H"], positions: Int[Array, "#B T"]) -> Float[Array, "B *heads T H"]:
    """RoPE, split-half: pairs (x[i], x[i + H/2]) turned by position / 10000^(2i/H); in float32, returned in x's dtype."""
    half = x.shape[-1] // 2
    frequency = jnp.asarray(ROPE_BASE ** (-np.arange(half, dtype=np.float64) / half), jnp.float32)
    angle = jnp.expand_dims(positions[..., None].astype(jnp.float32) * frequency, range(1, x.ndim - 2))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Rows(NamedTuple):
    """Keys and values to attend to, without the M axis where all noises of an observation share them; `mask` None: all valid."""

    k: Float[Array, "B K *M S H"]
    v: Float[Array, "B K *M S H"]
    mask: Bool[Array, "#B #T S"] | None = None


def attend(q: Float[Array, "B K *M G T H"], *blocks: Rows) -> Float[Array, "B K *M G T H"]:
    """Grouped-query attention to all rows of all blocks, scale H^-0.5, scores and softmax in float32.

    Blocks are not concatenated, so that shared rows are neither copied nor repeated. Each must have a valid row for every query.
    """
    scores = [_scores(q, rows) for rows in blocks]
    largest = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(largest)) for s in scores]
    total = [jnp.sum(w, axis=-1, keepdims=True) for w in weights]
    values = [_dot(w.astype(rows.v.dtype), rows.v, -2) for w, rows in zip(weights, blocks, strict=True)]
    return (_sum(values) / _sum(total)).astype(q.dtype)


def _sum(parts: list[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


def _scores(q: Array, rows: Rows) -> Float[Array, "B K *M G T S"]:
    scores = _dot(q, rows.k, -1) * q.shape[-1] ** -0.5
    if rows.mask is None:
        return scores
    return jnp.where(jnp.expand_dims(rows.mask, range(1, q.ndim - 2)), scores, MASKED)


def _dot(x: Array, rows: Array, axis: int) -> Array:
    """Sums over x's last axis and `axis` of rows in float32; rows' leading axes are x's."""
    batch = tuple(range(rows.ndim - 2))
    dimensions = (((x.ndim - 1,), (rows.ndim + axis,)), (batch, batch))
    return jax.lax.dot_general(x, rows, dimensions, preferred_element_type=jnp.float32)


def split_queries(x: Float[Array, "B *M T NH"], kv_heads: int, head_dim: int) -> Float[Array, "B K *M G T H"]:
    """Splits the merged axis of heads: head n belongs to key head n // G."""
    x = x.reshape(*x.shape[:-1], kv_heads, -1, head_dim)
    return jnp.moveaxis(x, (-3, -2), (1, -3))


def split_rows(x: Float[Array, "B *M S KH"], head_dim: int) -> Float[Array, "B K *M S H"]:
    """Splits the merged axis of key heads."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, head_dim), -2, 1)


def merge_queries(x: Float[Array, "B K *M G T H"]) -> Float[Array, "B *M T NH"]:
    """The inverse of `split_queries`."""
    x = jnp.moveaxis(x, (1, -3), (-3, -2))
    return x.reshape(*x.shape[:-3], -1)


def merge_rows(x: Float[Array, "B K *M S H"]) -> Float[Array, "B *M S KH"]:
    """The inverse of `split_rows`."""
    x = jnp.moveaxis(x, 1, -2)
    return x.reshape(*x.shape[:-2], -1)


class GatedMLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`, without biases."""

    width: int
    features: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.gate_proj = dense(self.width, self.dtype)
        self.up_proj = dense(self.width, self.dtype)
        self.down_proj = dense(self.features, self.dtype)

    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        # As one matrix: a CPU's products with the activation fused are slower on more axes.
        rows = x.reshape(-1, x.shape[-1])
        return self.down_proj(nn.silu(self.gate_proj(rows)) * self.up_proj(rows)).reshape(x.shape)


class SelfAttentionProjections(nn.Module):
    """The projections of one attention block under their Hugging Face names; `features` is the width they come back to."""

    text: TextConfig
    features: int
    dtype: jnp.dtype

    def setup(self) -> None:
        head_dim = self.text.head_dim
        self.q_proj = dense(self.text.num_attention_heads * head_dim, self.dtype)
        self.k_proj = dense(self.text.num_key_value_heads * head_dim, self.dtype)
        self.v_proj = dense(self.text.num_key_value_heads * head_dim, self.dtype)
        self.o_proj = dense(self.features, self.dtype)

    def queries(self, x: Float[Array, "B *M T D"]) -> Float[Array, "B K *M G T H"]:
        return split_queries(self.q_proj(x), self.text.num_key_value_heads, self.text.head_dim)

    def keys_values(self, x: Float[Array, "B *M T D"]) -> KV:
        return split_rows(self.k_proj(x), self.text.head_dim), split_rows(self.v_proj(x), self.text.head_dim)

    def output(self, x: Float[Array, "B K *M G T H"]) -> Float[Array, "B *M T D"]:
        return self.o_proj(merge_queries(x))


def rms_norm(text: TextConfig, dtype: jnp.dtype) -> nn.RMSNorm:
    """RMSNorm with statistics in float32; the weight multiplies directly."""
    return nn.RMSNorm(epsilon=text.rms_norm_eps, dtype=dtype)


def time_embedding(
    t: Float[Array, "*batch"], width: int, min_period: float, max_period: float
) -> Float[Array, "*batch D"]:
    """`[sin | cos]` of `2 pi t / period` for `width / 2` periods, geometric from min to max; float32, t in [0, 1].

    The angle reaches 1,570 rad, where float32 resolves only 1e-4 rad, and LeRobot computes it in float64. Here the number of
    turns is split into exact 12-bit by 12-bit products, whole turns are dropped from each, and only the fraction is rounded.
    """
    half = width // 2
    fraction = np.linspace(0.0, 1.0, half) if half > 1 else np.zeros(1)
    turns = 1.0 / (min_period * (max_period / min_period) ** fraction)
    high = _keep_12_bits(turns.astype(np.float32))
    middle = _keep_12_bits((turns - high).astype(np.float32))
    low = (turns - high.astype(np.float64) - middle).astype(np.float32)
    t = t.astype(jnp.float32)[..., None]
    t_high = jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(t, jnp.uint32) & np.uint32(0xFFFFF000), jnp.float32
    )
    t_low = t - t_high

    def whole_turns_dropped(x: Array) -> Array:
        return x - jnp.round(x)

    part = whole_turns_dropped(t_high * high) + whole_turns_dropped(t_high * middle) + whole_turns_dropped(t_low * high)
    angle = 2 * np.pi * whole_turns_dropped(part + (t_low * middle + t * low))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _keep_12_bits(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
