"""SmolVLA as five pure functions; training and sampling are compositions of the same five.

    embed_images   images -> image tokens                       once per observation
    encode         image tokens, language -> Context            once per observation, shared by teacher and student
    extend         Context, state -> Context                    once per set of weights
    remember       Context -> Memory                            once per set of weights, outside the solver's loop
    velocity       Memory, x_t, t -> v_t                        every Euler step

The attention mask is block-causal: image and language rows see each other, the state row sees them and itself, action rows see
all of those. So each function's output is final when it is computed, and no later function can change it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.expert import expert_layers, init_expert, remember_context
from jaxreflow.model.language import embed_tokens, init_text, text_layers
from jaxreflow.model.layers import Rows, apply, projection, time_embedding
from jaxreflow.model.types import Context, Memory, Observation, Params
from jaxreflow.model.vision import connector, init_vision, to_pixels, vision_tower

P = ParamSpec("P")
R = TypeVar("R")


def _at_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs float32 matrix products in float32 on accelerators too, where the default is bfloat16 or TF32 passes."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        config: Any = kwargs["config"]
        with (
            jax.default_matmul_precision("float32" if config.dtype == "float32" else "default"),
            jax.named_scope(function.__name__),
        ):
            return function(*args, **kwargs)

    return wrapped


@_at_precision
def embed_images(
    params: Params, images: Mapping[str, Array], *, config: ModelConfig
) -> dict[str, Float[Array, "B P D"]]:
    """Image tokens of every camera: resize and pad, vision tower, connector. Unscaled; frozen by default."""
    pixels = {key: to_pixels(image, config) for key, image in images.items()}
    if len({p.shape for p in pixels.values()}) > 1:
        return {key: _embed(params, p, config) for key, p in pixels.items()}
    # One pass of the tower over all cameras; stacked behind the batch axis, so that a sharded batch stays where it is.
    stacked = jnp.stack(list(pixels.values()), axis=1)
    tokens = _embed(params, stacked.reshape(-1, *stacked.shape[2:]), config)
    tokens = tokens.reshape(*stacked.shape[:2], *tokens.shape[1:])
    return {key: tokens[:, i] for i, key in enumerate(pixels)}


def _embed(params: Params, pixels: Array, config: ModelConfig) -> Array:
    return connector(params["connector"], vision_tower(params["vision_model"], pixels, config), config)


@_at_precision
def encode(
    params: Params,
    image_tokens: Mapping[str, Float[Array, "B P D"]],
    image_mask: Mapping[str, Bool[Array, " B"]],
    tokens: Int[Array, "B T"],
    token_mask: Bool[Array, "B T"],
    *,
    config: ModelConfig,
) -> Context:
    """K/V of all text layers over images and language. Position ids count valid rows only."""
    x, mask = embed_prefix(params, image_tokens, image_mask, tokens, token_mask, config=config)
    positions = jnp.cumsum(mask, axis=1) - 1
    kv = text_layers(params["text_model"], x, positions, mask[:, None, :], None, config)
    return Context(kv=kv, mask=mask, count=jnp.sum(mask, axis=1, dtype=jnp.int32))


def embed_prefix(
    params: Params,
    image_tokens: Mapping[str, Float[Array, "B P D"]],
    image_mask: Mapping[str, Bool[Array, " B"]],
    tokens: Int[Array, "B T"],
    token_mask: Bool[Array, "B T"],
    *,
    config: ModelConfig,
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """The text layers' input rows, images before language, and which of them are valid.

    Cameras come in the config's order. An absent camera (at most `empty_cameras` of them) contributes only its special tokens, if
    the config has any: its image tokens would be masked.
    """
    text_params = params["text_model"]
    scale = math.sqrt(config.text.hidden_size)
    batch = tokens.shape[0]
    blocks: list[tuple[Array, Array]] = []

    def special(*ids: int) -> tuple[Array, Array]:
        rows = embed_tokens(text_params, jnp.asarray(ids), config)
        return jnp.broadcast_to(rows, (batch, *rows.shape)), jnp.ones((batch, len(ids)), bool)

    def camera(*image: tuple[Array, Array]) -> None:
        if not config.add_image_special_tokens:
            blocks.extend(image)
        else:
            fake = config.fake_image_token_id
            blocks.extend([special(fake, config.global_image_token_id), *image, special(fake)])

    for key in _present(image_tokens, config):
        rows = image_tokens[key].astype(config.dtype) * scale
        camera((rows, jnp.broadcast_to(image_mask[key][:, None], rows.shape[:2])))
    for _ in range(min(len(config.visual_keys) - len(image_tokens), config.empty_cameras)):
        camera()
    blocks.append((embed_tokens(text_params, tokens, config) * scale, token_mask))
    x = jnp.concatenate([rows.astype(config.dtype) for rows, _ in blocks], axis=1)
    return x, jnp.concatenate([valid for _, valid in blocks], axis=1)


def _present(images: Mapping[str, Any], config: ModelConfig) -> list[str]:
    unknown = sorted(set(images) - set(config.visual_keys))
    if unknown or not images:
        raise ConfigError(
            f"images {unknown or 'missing'}: expected at least one of the policy's cameras {list(config.visual_keys)}, "
            f"found {sorted(images)}"
        )
    return [key for key in config.visual_keys if key in images]


@_at_precision
def extend(params: Params, context: Context, state: Float[Array, "B max_state_dim"], *, config: ModelConfig) -> Context:
    """The context with the state token's row appended: one token through the frozen text layers.

    Gradients reach `state_proj` through here and nowhere else.
    """
    row = apply(projection(config.text.hidden_size), params["state_proj"], state)[:, None]
    past = [Rows(k, v, context.mask[:, None, :]) for k, v in context.kv]
    own = text_layers(params["text_model"], row, context.count[:, None], None, past, config)
    kv = jax.tree.map(lambda rows, row: jnp.concatenate([rows, row], axis=2), context.kv, own)
    mask = jnp.concatenate([context.mask, jnp.ones((state.shape[0], 1), bool)], axis=1)
    return Context(kv=kv, mask=mask, count=context.count + 1)


@_at_precision
def remember(params: Params, context: Context, *, config: ModelConfig) -> Memory:
    """What the expert attends to: its own k/v projections of the context in cross layers, the context itself in self layers."""
    return remember_context(params["expert"], context, config)


@_at_precision
def velocity(
    params: Params, memory: Memory, x_t: Float[Array, "B M C A"], t: Float[Array, "B M"], *, config: ModelConfig
) -> Float[Array, "B M C A"]:
    """The velocity v(x_t, t) for M noisy chunks per observation; in and out float32."""
    width = config.expert_hidden_size
    hidden = projection(width)
    actions = apply(hidden, params["action_in_proj"], x_t)
    time = time_embedding(t, width, config.min_period, config.max_period)
    x = jnp.concatenate([actions, jnp.broadcast_to(time[:, :, None], actions.shape)], axis=-1)
    x = jax.nn.silu(apply(hidden, params["action_time_mlp_in"], x))
    x = apply(hidden, params["action_time_mlp_out"], x)
    x = expert_layers(params["expert"], memory, x, config)
    return apply(projection(config.max_action_dim), params["action_out_proj"], x.astype(jnp.float32))


def observe(params: Params, observation: Observation, *, config: ModelConfig) -> Context:
    """`embed_images`, unless the observation brings its tokens, then `encode`: all that two policies of one VLM share."""
    seen = jax.tree.map(jnp.asarray, observation)
    images = {key: image for key, image in seen.images.items() if key not in seen.image_tokens}
    image_tokens = {**seen.image_tokens, **(embed_images(params, images, config=config) if images else {})}
    return encode(params, image_tokens, seen.image_mask, seen.tokens, seen.token_mask, config=config)


def memorise(
    params: Params, context: Context, state: Float[Array, "B max_state_dim"], *, config: ModelConfig
) -> Memory:
    """`extend` then `remember`: what one set of expert weights keeps of an observation."""
    return remember(params, extend(params, context, state, config=config), config=config)


def init_params(key: Array, config: ModelConfig) -> Params:
    """Random float32 parameters of everything that runs: a nested dict under LeRobot's and Hugging Face's names."""
    vision_key, text_key, expert_key, *keys = jax.random.split(key, 8)
    width, actions = config.expert_hidden_size, config.max_action_dim
    sizes = {
        "state_proj": (config.max_state_dim, config.text.hidden_size),
        "action_in_proj": (actions, width),
        "action_out_proj": (width, actions),
        "action_time_mlp_in": (2 * width, width),
        "action_time_mlp_out": (width, width),
    }
    tower, connect = init_vision(vision_key, config)
    projections = {
        name: projection(size_out).init(k, jnp.zeros((1, size_in)))["params"]
        for k, (name, (size_in, size_out)) in zip(keys, sizes.items(), strict=True)
    }
    return {
        "vision_model": tower,
        "connector": connect,
        "text_model": init_text(text_key, config),
        "expert": init_expert(expert_key, config),
        **projections,
    }
