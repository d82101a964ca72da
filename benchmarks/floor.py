"""The shortest time that a piece of work can take: operations counted from its shapes, divided by a measured rate.

An operation is one multiplication or addition of a matrix product, so a product of `[m, k]` and `[k, n]` has 2mkn. Norms,
softmax and other elementwise work are not counted. The rate is that of large products. The Euler steps of one chunk multiply 50
rows at a time, and `python -m benchmarks.floor` prints how much slower that is. A backward pass counts only what the trained
weights need. This is the gradient of every expert layer's weights and inputs, and of the state's row through the frozen text
layers.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreflow.model.config import ModelConfig

LANGUAGE_TOKENS = 48


class Size(NamedTuple):
    """Observations, noise draws of each, cameras of each, and Euler steps."""

    batch: int
    noises: int
    cameras: int
    steps: int


def reflow_step(config: ModelConfig, size: Size, *, features: bool = False) -> dict[str, float]:
    """Operations of one update by part: the shared context, the teacher's endpoints, the student's loss and gradient."""
    rows = _prefix_rows(config, size.cameras)
    memory = extend(config, rows) + remember(config, rows + 1)
    once = velocity(config, size.noises, rows + 1)
    # The frozen layers pass the state's gradient on, `remember` has one for its weights: one product more of each.
    parts = {
        "images": 0.0 if features else size.cameras * embed_image(config),
        "context": encode(config, rows),
        "teacher": memory + size.steps * once,
        "student": 2 * memory + 3 * once,
    }
    return {name: size.batch * operations for name, operations in parts.items()}


def sample(config: ModelConfig, size: Size) -> dict[str, float]:
    """Operations of one call of the sampler by part: everything that does not depend on the noise, and the Euler steps."""
    rows = _prefix_rows(config, size.cameras)
    prefix = size.cameras * embed_image(config) + encode(config, rows) + extend(config, rows)
    parts = {
        "prefix": prefix + remember(config, rows + 1),
        "loop": size.steps * velocity(config, size.noises, rows + 1),
    }
    return {name: size.batch * operations for name, operations in parts.items()}


def embed_image(config: ModelConfig) -> float:
    """Patches, encoder layers and connector of one image."""
    vision, patches = config.vision, _patches(config)
    width, tokens = vision.hidden_size, patches // config.scale_factor**2
    layer = 4 * _product(patches, width, width) + 2 * _product(patches, width, vision.intermediate_size)
    layer += _attention(patches, patches, width)
    ends = _product(patches, 3 * vision.patch_size**2, width)
    ends += _product(tokens, width * config.scale_factor**2, config.text.hidden_size)
    return ends + vision.num_hidden_layers * layer


def encode(config: ModelConfig, rows: int) -> float:
    """The rows of images and language through the text layers. The last layer makes only keys and values."""
    return _text_layers(config, rows, rows)


def extend(config: ModelConfig, rows: int) -> float:
    """The state's row through the same layers, after `rows` others."""
    return _product(1, config.max_state_dim, config.text.hidden_size) + _text_layers(config, 1, rows + 1)


def remember(config: ModelConfig, rows: int) -> float:
    """Keys and values of the cross layers."""
    width = config.text.num_key_value_heads * config.text.head_dim
    return config.expert_layer_kinds.count("cross") * 2 * _product(rows, width, width)


def velocity(config: ModelConfig, noises: int, rows: int) -> float:
    """One evaluation of the expert for `noises` chunks that attend to `rows` of memory."""
    text, width, chunk = config.text, config.expert_hidden_size, config.chunk_size
    heads, shared = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    every = 2 * _product(chunk, width, heads) + 3 * _product(chunk, width, config.expert_intermediate_size)
    cross = every + _attention(chunk, rows, heads)
    own = every + 2 * _product(chunk, width, shared) + _attention(chunk, rows + chunk, heads)
    ends = 2 * _product(chunk, config.max_action_dim, width) + 3 * _product(chunk, width, width)
    kinds = config.expert_layer_kinds
    return noises * (ends + kinds.count("self") * own + kinds.count("cross") * cross)


def matmul_rate(dtype: str, runs: int = 5, rows: int | None = None) -> float:
    """Operations per second of a matrix product on one device, the median of several; of a square one unless `rows` are given."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    left = matrix if rows is None else matrix[:rows]
    product = jax.jit(jnp.matmul)
    product(left, matrix).block_until_ready()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        product(left, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return _product(len(left), side, side) / statistics.median(seconds)


def _text_layers(config: ModelConfig, rows: int, keys: int) -> float:
    text, layers = config.text, config.num_context_layers
    heads, shared = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    rest = 2 * _product(rows, text.hidden_size, heads) + 3 * _product(rows, text.hidden_size, text.intermediate_size)
    rest += _attention(rows, keys, heads)
    return layers * 2 * _product(rows, text.hidden_size, shared) + (layers - 1) * rest


def _patches(config: ModelConfig) -> int:
    side = (config.resize_imgs_with_padding or (config.vision.image_size,))[0]
    return (side // config.vision.patch_size) ** 2


def _prefix_rows(config: ModelConfig, cameras: int) -> int:
    return cameras * _patches(config) // config.scale_factor**2 + LANGUAGE_TOKENS


def _product(rows: int, inner: int, columns: int) -> float:
    return 2.0 * rows * inner * columns


def _attention(queries: int, keys: int, width: int) -> float:
    """Scores, and the values that they weigh."""
    return 2 * _product(queries, keys, width)


if __name__ == "__main__":
    for count in (50, 100, 200, 800):
        print(f"{count:5} rows: {matmul_rate('float32', 21, count) / 1e9:6.0f} GFLOP/s")
    print(f"     square: {matmul_rate('float32', 21) / 1e9:6.0f} GFLOP/s")
