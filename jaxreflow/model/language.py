"""The VLM's text layers over the prefix: each hands its rotated keys and raw values to the action expert."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreflow.config import ModelConfig, TextConfig
from jaxreflow.model.layers import GatedMLP, SelfAttentionProjections, apply, attend, rms_norm, rotate
from jaxreflow.types import Params

KV = tuple[Float[Array, "*L B S K H"], Float[Array, "*L B S K H"]]
OwnKV = tuple[Float[Array, "*L B T K H"], Float[Array, "*L B T K H"]]


class TextLayer(nn.Module):
    """One Llama layer; attends to `past` rows, if given, and to its own."""

    text: TextConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.input_layernorm = rms_norm(self.text, self.dtype)
        self.self_attn = SelfAttentionProjections(self.text, self.text.hidden_size, self.dtype)
        self.post_attention_layernorm = rms_norm(self.text, self.dtype)
        self.mlp = GatedMLP(self.text.intermediate_size, self.text.hidden_size, self.dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        past: KV | None,
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B queries S_plus_T"],
    ) -> tuple[Float[Array, "B T D"], OwnKV]:
        h = self.input_layernorm(x)
        k, v = self.self_attn.keys_values(h)
        k = rotate(k, positions)
        keys, values = (k, v) if past is None else (jnp.concatenate([past[0], k], 1), jnp.concatenate([past[1], v], 1))
        x = x + self.self_attn.output(attend(rotate(self.self_attn.queries(h), positions), keys, values, mask))
        return x + self.mlp(self.post_attention_layernorm(x)), (k, v)


class LastTextLayer(nn.Module):
    """The last layer that the expert reads: only its input norm and k/v projections matter, the rest is dead weight."""

    text: TextConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        self.input_layernorm = rms_norm(self.text, self.dtype)
        self.self_attn = SelfAttentionProjections(self.text, self.text.hidden_size, self.dtype)

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> OwnKV:
        k, v = self.self_attn.keys_values(self.input_layernorm(x))
        return rotate(k, positions), v


def text_layers(
    params: Params,
    x: Float[Array, "B T D"],
    past: KV | None,
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B queries S_plus_T"],
    config: ModelConfig,
) -> OwnKV:
    """Runs `x` through all layers that matter; returns K and V of its own rows, stacked over layers `[L, B, T, K, H]`."""
    text, dtype = config.text, jnp.dtype(config.dtype)

    def layer(x: Array, scanned: tuple[Params, KV | None]) -> tuple[Array, OwnKV]:
        layer_params, layer_past = scanned
        out: tuple[Array, KV] = apply(TextLayer(text, dtype), layer_params, x, layer_past, positions, mask)
        return out

    inner_past = None if past is None else jax.tree.map(lambda a: a[:-1], past)
    x, (k, v) = jax.lax.scan(layer, x.astype(dtype), (params["layers"], inner_past))
    last_k, last_v = apply(LastTextLayer(text, dtype), params["last_layer"], x, positions)
    return jnp.concatenate([k, last_k[None]]), jnp.concatenate([v, last_v[None]])


def embed_tokens(params: Params, tokens: Int[Array, "*rows"], config: ModelConfig) -> Float[Array, "*rows D"]:
    """Rows of the token table, in the compute dtype, unscaled."""
    return jnp.take(params["embed_tokens"]["embedding"], tokens, axis=0).astype(config.dtype)


def init_text(key: Array, config: ModelConfig) -> Params:
    """Random parameters of the text layers that run."""
    text, dtype = config.text, jnp.dtype(config.dtype)
    keys = jax.random.split(key, 3)
    x, positions = jnp.zeros((1, 1, text.hidden_size)), jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1), bool)
    layer_keys = jax.random.split(keys[0], config.num_context_layers - 1)
    return {
        "embed_tokens": {"embedding": 0.02 * jax.random.normal(keys[1], (text.vocab_size, text.hidden_size))},
        "layers": jax.vmap(lambda k: TextLayer(text, dtype).init(k, x, None, positions, mask)["params"])(layer_keys),
        "last_layer": LastTextLayer(text, dtype).init(keys[2], x, positions)["params"],
    }
