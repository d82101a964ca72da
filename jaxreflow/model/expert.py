"""The action expert: its memory of the prefix, and the velocity of noisy actions given that memory."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreflow.model.config import ModelConfig, TextConfig
from jaxreflow.model.layers import (
    KV,
    GatedMLP,
    Rows,
    SelfAttentionProjections,
    apply,
    attend,
    merge_rows,
    rms_norm,
    rotate,
    split_rows,
)
from jaxreflow.model.types import Context, Memory, Params


class ExpertLayer(nn.Module):
    """One expert layer. A self layer attends to the VLM layer's own K/V and to earlier actions of the same chunk; a cross layer
    attends only to its own k/v projections of the VLM layer's rotated K and V (`remember`)."""

    kind: str
    text: TextConfig
    width: int
    mlp_width: int
    dtype: jnp.dtype

    def setup(self) -> None:
        self.input_layernorm = rms_norm(self.text, self.dtype)
        self.self_attn = SelfAttentionProjections(self.text, self.width, self.dtype)
        self.post_attention_layernorm = rms_norm(self.text, self.dtype)
        self.mlp = GatedMLP(self.mlp_width, self.width, self.dtype)

    def remember(self, k: Float[Array, "B K S H"], v: Float[Array, "B K S H"]) -> KV:
        if self.kind == "self":
            return k, v
        k, v = self.self_attn.k_proj(merge_rows(k)), self.self_attn.v_proj(merge_rows(v))
        return split_rows(k, self.text.head_dim), split_rows(v, self.text.head_dim)

    def __call__(self, x: Float[Array, "B M C D"], prefix: Rows, count: Array) -> Float[Array, "B M C D"]:
        h = self.input_layernorm(x)
        attended = self.attend_self(h, prefix, count) if self.kind == "self" else self.attend_cross(h, prefix)
        x = x + self.self_attn.output(attended)
        return x + self.mlp(self.post_attention_layernorm(x))

    def attend_self(self, h: Float[Array, "B M C D"], prefix: Rows, count: Array) -> Float[Array, "B K M G C H"]:
        step = jnp.arange(h.shape[2])
        positions = count[:, None] + step
        k, v = self.self_attn.keys_values(h)
        actions = Rows(rotate(k, positions), v, step[None, None, :] <= step[None, :, None])
        return attend(rotate(self.self_attn.queries(h), positions), prefix, actions)

    def attend_cross(self, h: Float[Array, "B M C D"], prefix: Rows) -> Float[Array, "B K M G C H"]:
        return attend(rotate(self.self_attn.queries(h), jnp.arange(h.shape[2])[None]), prefix)

    def touch(self, x: Float[Array, "B M C D"], prefix: Rows, count: Array) -> Float[Array, "B M C D"]:
        """Uses every parameter, for initialisation."""
        return self(x, Rows(*self.remember(prefix.k, prefix.v)), count)


def _layers(config: ModelConfig) -> list[ExpertLayer]:
    sizes = config.expert_hidden_size, config.expert_intermediate_size, jnp.dtype(config.dtype)
    return [ExpertLayer(kind, config.text, *sizes) for kind in config.expert_layer_kinds]


def remember_context(params: Params, context: Context, config: ModelConfig) -> Memory:
    """The expert's memory of the prefix: computed once, outside the solver's loop."""
    kv = tuple(
        apply(layer, params["layers"][str(i)], *context.kv[i * config.layer_stride], method=ExpertLayer.remember)
        for i, layer in enumerate(_layers(config))
    )
    return Memory(kv=kv, mask=context.mask, count=context.count)


def expert_layers(
    params: Params, memory: Memory, x: Float[Array, "B M C D"], config: ModelConfig
) -> Float[Array, "B M C D"]:
    """Runs M chunks of action tokens per observation through all layers and the final norm; chunks do not see each other."""
    x, mask = x.astype(config.dtype), memory.mask[:, None, :]
    for i, layer in enumerate(_layers(config)):
        x = apply(layer, params["layers"][str(i)], x, Rows(*memory.kv[i], mask), memory.count)
    return apply(rms_norm(config.text, jnp.dtype(config.dtype)), params["norm"], x)


def init_expert(key: Array, config: ModelConfig) -> Params:
    """Random parameters of the expert."""
    text, layers = config.text, _layers(config)
    norm_key, *keys = jax.random.split(key, len(layers) + 1)
    x, count = jnp.zeros((1, 1, 1, config.expert_hidden_size)), jnp.ones(1, jnp.int32)
    row = jnp.zeros((1, text.num_key_value_heads, 1, text.head_dim), config.dtype)
    inputs = (x, Rows(row, row), count)
    return {
        "layers": {
            str(i): layer.init(k, *inputs, method=ExpertLayer.touch)["params"]
            for i, (layer, k) in enumerate(zip(layers, keys, strict=True))
        },
        "norm": rms_norm(text, jnp.dtype(config.dtype)).init(norm_key, x)["params"],
    }
