"""The action expert: its memory of the prefix, and the velocity of noisy actions given that memory."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreflow.config import ModelConfig, TextConfig
from jaxreflow.model.language import KV
from jaxreflow.model.layers import GatedMLP, SelfAttentionProjections, apply, attend, rms_norm, rotate, split_heads
from jaxreflow.types import Context, Memory, Params


@flax.struct.dataclass
class ActionSight:
    """Positions and masks of M noisy chunks of C action tokens per observation, laid out as batch `BM` of length C.

    Chunks of one observation share its prefix and do not see each other. For C = 2 and a prefix of three rows, the last of them
    invalid, `self_mask` reads (rows: queries a0 a1; columns: prefix | a0 a1)

        a0   1 1 0   1 0
        a1   1 1 0   1 1

    and `cross_mask` is its first S columns.
    """

    relative: Int[Array, "1 C"]
    absolute: Int[Array, "BM C"]
    cross_mask: Bool[Array, "B 1 S"]
    self_mask: Bool[Array, "BM C S_plus_C"]


def action_sight(mask: Bool[Array, "B S"], count: Int[Array, " B"], num_noises: int, chunk_size: int) -> ActionSight:
    """What M = `num_noises` chunks see of a prefix with key mask `mask` and `count` valid rows, and of themselves."""
    step = jnp.arange(chunk_size)
    prefix = jnp.repeat(mask, num_noises, axis=0)[:, None, :]
    causal = jnp.broadcast_to(step[None, :] <= step[:, None], (prefix.shape[0], chunk_size, chunk_size))
    return ActionSight(
        relative=step[None],
        absolute=jnp.repeat(count, num_noises)[:, None] + step,
        cross_mask=mask[:, None, :],
        self_mask=jnp.concatenate([jnp.broadcast_to(prefix, (*causal.shape[:2], mask.shape[1])), causal], axis=-1),
    )


class ExpertLayer(nn.Module):
    """One expert layer. A self layer attends to the VLM layer's own K/V and to earlier actions; a cross layer attends only to
    its own k/v projections of the VLM layer's rotated K and V (`remember`)."""

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

    def remember(self, k: Float[Array, "B S K H"], v: Float[Array, "B S K H"]) -> KV:
        if self.kind == "self":
            return k, v

        def merged(x: Array) -> Array:
            return x.reshape(*x.shape[:2], -1)

        head_dim = self.text.head_dim
        return split_heads(self.self_attn.k_proj(merged(k)), head_dim), split_heads(
            self.self_attn.v_proj(merged(v)), head_dim
        )

    def __call__(self, x: Float[Array, "BM C D"], memory: KV, sight: ActionSight) -> Float[Array, "BM C D"]:
        h = self.input_layernorm(x)
        attended = self.attend_self(h, memory, sight) if self.kind == "self" else self.attend_cross(h, memory, sight)
        x = x + self.self_attn.output(attended)
        return x + self.mlp(self.post_attention_layernorm(x))

    def attend_self(self, h: Float[Array, "BM C D"], memory: KV, sight: ActionSight) -> Float[Array, "BM C NH"]:
        own_k, own_v = self.self_attn.keys_values(h)
        shared_k, shared_v = (jnp.repeat(x, h.shape[0] // x.shape[0], axis=0) for x in memory)
        k = jnp.concatenate([shared_k, rotate(own_k, sight.absolute)], axis=1)
        v = jnp.concatenate([shared_v, own_v], axis=1)
        return attend(rotate(self.self_attn.queries(h), sight.absolute), k, v, sight.self_mask)

    def attend_cross(self, h: Float[Array, "BM C D"], memory: KV, sight: ActionSight) -> Float[Array, "BM C NH"]:
        # Actions do not see each other here, so an observation's chunks are queries of one sequence: the memory is not repeated.
        q = rotate(self.self_attn.queries(h), sight.relative)
        q = q.reshape(memory[0].shape[0], -1, *q.shape[2:])
        return attend(q, *memory, sight.cross_mask).reshape(*h.shape[:2], -1)

    def touch(self, x: Float[Array, "BM C D"], memory: KV, sight: ActionSight) -> Float[Array, "BM C D"]:
        """Uses every parameter, for initialisation."""
        return self(x, self.remember(*memory), sight)


def _layer(config: ModelConfig, kind: str) -> ExpertLayer:
    dtype = jnp.dtype(config.dtype)
    return ExpertLayer(kind, config.text, config.expert_hidden_size, config.expert_intermediate_size, dtype)


def group_kinds(config: ModelConfig) -> tuple[str, ...]:
    """The repeating group of layer kinds: ("self", "cross") for the default."""
    return config.expert_layer_kinds[: config.expert_period]


def num_groups(config: ModelConfig) -> int:
    """How often the group repeats; what is left over stands in `rest`."""
    return len(config.expert_layer_kinds) // config.expert_period


def rest_kinds(config: ModelConfig) -> tuple[str, ...]:
    """Kinds of the layers after the last whole group."""
    return config.expert_layer_kinds[num_groups(config) * config.expert_period :]


def remember_context(params: Params, context: Context, config: ModelConfig) -> Memory:
    """The expert's memory of the prefix: computed once, outside the solver's loop."""
    k, v = context.k[:: config.layer_stride], context.v[:: config.layer_stride]
    period, scanned_layers = config.expert_period, num_groups(config) * config.expert_period

    def remember(kind: str) -> Callable[[Params, Array, Array], KV]:
        layer = _layer(config, kind)
        return lambda p, k, v: apply(layer, p, k, v, method=ExpertLayer.remember)

    scanned = tuple(
        jax.vmap(remember(kind))(params["layers"][str(i)], k[i:scanned_layers:period], v[i:scanned_layers:period])
        for i, kind in enumerate(group_kinds(config))
    )
    rest = tuple(
        remember(kind)(params["rest"][str(i)], k[scanned_layers + i], v[scanned_layers + i])
        for i, kind in enumerate(rest_kinds(config))
    )
    return Memory(scanned=scanned, rest=rest, mask=context.mask, count=context.count)


def expert_layers(
    params: Params, memory: Memory, x: Float[Array, "BM C D"], sight: ActionSight, config: ModelConfig
) -> Array:
    """Runs action tokens through all expert layers and the final norm: the groups scanned, the rest unrolled."""
    kinds = group_kinds(config)

    def group(x: Array, scanned: tuple[tuple[Params, ...], tuple[KV, ...]]) -> tuple[Array, None]:
        for kind, layer_params, layer_memory in zip(kinds, *scanned, strict=True):
            x = apply(_layer(config, kind), layer_params, x, layer_memory, sight)
        return x, None

    stacked = tuple(params["layers"][str(i)] for i in range(len(kinds)))
    x, _ = jax.lax.scan(group, x.astype(config.dtype), (stacked, memory.scanned))
    for i, kind in enumerate(rest_kinds(config)):
        x = apply(_layer(config, kind), params["rest"][str(i)], x, memory.rest[i], sight)
    return apply(rms_norm(config.text, jnp.dtype(config.dtype)), params["norm"], x)


def init_expert(key: Array, config: ModelConfig) -> Params:
    """Random parameters of the expert."""
    text, keys = config.text, jax.random.split(key, 3)
    x = jnp.zeros((1, 1, config.expert_hidden_size))
    kv = jnp.zeros((1, 1, text.num_key_value_heads, text.head_dim), config.dtype)
    sight = action_sight(jnp.ones((1, 1), bool), jnp.ones(1, jnp.int32), 1, 1)

    def init(kind: str) -> Callable[[Array], Params]:
        return lambda k: _layer(config, kind).init(k, x, (kv, kv), sight, method=ExpertLayer.touch)["params"]

    return {
        "layers": {
            str(i): jax.vmap(init(kind))(jax.random.split(jax.random.fold_in(keys[0], i), num_groups(config)))
            for i, kind in enumerate(group_kinds(config))
        },
        "rest": {str(i): init(kind)(jax.random.fold_in(keys[1], i)) for i, kind in enumerate(rest_kinds(config))},
        "norm": rms_norm(text, jnp.dtype(config.dtype)).init(keys[2], x)["params"],
    }
