"""The VLM's text layers over the prefix: each hands its rotated keys and raw values to the action expert."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreflow.model.config import ModelConfig, TextConfig
from jaxreflow.model.layers import KV, GatedMLP, Rows, SelfAttentionProjections, apply, attend, rms_norm, rotate
from jaxreflow.model.types import Params


class TextLayer(nn.Module):
    """One Llama layer: rows attend to those `past`, if given, and to each other where `valid`."""

    text: TextConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.input_layernorm = rms_norm(self.text, self.dtype)
        self.self_attn = SelfAttentionProjections(self.text, self.text.hidden_size, self.dtype)
        self.post_attention_layernorm = rms_norm(self.text, self.dtype)
        self.mlp = GatedMLP(self.text.intermediate_size, self.text.hidden_size, self.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Array | None, past: Rows | None
    ) -> tuple[Float[Array, "B T D"], KV]:
        h = self.input_layernorm(x)
        k, v = self.self_attn.keys_values(h)
        own = Rows(rotate(k, positions), v, valid)
        q = rotate(self.self_attn.queries(h), positions)
        x = x + self.self_attn.output(attend(q, own) if past is None else attend(q, past, own))
        return x + self.mlp(self.post_attention_layernorm(x)), (own.k, own.v)


class LastTextLayer(nn.Module):
    """The last layer that the expert reads: only its input norm and k/v projections matter, the rest is dead weight."""

    text: TextConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.input_layernorm = rms_norm(self.text, self.dtype)
        self.self_attn = SelfAttentionProjections(self.text, self.text.hidden_size, self.dtype)

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> KV:
        k, v = self.self_attn.keys_values(self.input_layernorm(x))
        return rotate(k, positions), v


def text_layers(
    params: Params,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    valid: Array | None,
    past: Sequence[Rows] | None,
    config: ModelConfig,
) -> tuple[KV, ...]:
    """Runs `x` through all layers that matter; returns K and V of its own rows, layer by layer.

    Rows attend to those `past`, one block a layer, and to each other where `valid` (`[B, 1, T]`, None: everywhere).
    """
    text, dtype = config.text, jnp.dtype(config.dtype)
    last = config.num_context_layers - 1
    x, kv = x.astype(dtype), []
    for i in range(last):
        layer_past = None if past is None else past[i]
        x, own = apply(TextLayer(text, dtype), params["layers"][str(i)], x, positions, valid, layer_past)
        kv.append(own)
    kv.append(apply(LastTextLayer(text, dtype), params["layers"][str(last)], x, positions))
    return tuple(kv)


def embed_tokens(params: Params, tokens: Int[Array, "*rows"], config: ModelConfig) -> Float[Array, "*rows D"]:
    """Rows of the token table, in the compute dtype, unscaled."""
    return jnp.take(params["embed_tokens"]["embedding"], tokens, axis=0).astype(config.dtype)


def init_text(key: Array, config: ModelConfig) -> Params:
    """Random parameters of the text layers that run."""
    text, dtype, last = config.text, jnp.dtype(config.dtype), config.num_context_layers - 1
    table_key, last_key, *keys = jax.random.split(key, config.num_context_layers + 1)
    x, positions = jnp.zeros((1, 1, text.hidden_size)), jnp.zeros((1, 1), jnp.int32)
    layers = {str(i): TextLayer(text, dtype).init(k, x, positions, None, None)["params"] for i, k in enumerate(keys)}
    layers[str(last)] = LastTextLayer(text, dtype).init(last_key, x, positions)["params"]
    table = 0.02 * jax.random.normal(table_key, (text.vocab_size, text.hidden_size))
    return {"embed_tokens": {"embedding": table}, "layers": layers}
