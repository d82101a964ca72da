"""The network's parts against literal values, and the properties that its factorisation rests on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow.errors import ConfigError
from jaxreflow.model import embed_images, encode, extend, memorise, observe, velocity, vision
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.model.layers import (
    Rows,
    attend,
    merge_queries,
    merge_rows,
    rotate,
    split_queries,
    split_rows,
    time_embedding,
)
from jaxreflow.model.types import Observation
from jaxreflow.model.vision import attend_by_head, connector, interpolation_matrix, position_ids, resize_with_pad
from jaxreflow.policy.architecture import network_of
from tests.tiny import CAMERA, VLM, WRIST, tiny_model, tiny_observation, tiny_policy


def test_rotation_turns_split_halves_by_the_position():
    x = jnp.asarray([[[[1.0, 2.0, 0.0, 0.0]]]])
    turned = rotate(x, jnp.asarray([[1]]))[0, 0, 0]
    # Pair 0 turns by 1 rad, pair 1 by 10000^(-2/4) = 0.01 rad.
    expected = [np.cos(1.0), 2 * np.cos(0.01), np.sin(1.0), 2 * np.sin(0.01)]
    np.testing.assert_allclose(turned, expected, atol=1e-7)
    np.testing.assert_array_equal(rotate(x, jnp.asarray([[0]])), x)


def test_query_heads_share_key_heads_in_order():
    q = split_queries(jnp.zeros((1, 1, 8)), kv_heads=2, head_dim=2)
    rows = Rows(jnp.zeros((1, 2, 1, 2)), split_rows(jnp.asarray([[[1.0, 1.0, 5.0, 5.0]]]), head_dim=2))
    np.testing.assert_array_equal(merge_queries(attend(q, rows))[0, 0], [1, 1, 1, 1, 5, 5, 5, 5])


def test_heads_are_merged_as_they_were_split():
    x = jnp.arange(2.0 * 3 * 5 * 12).reshape(2, 3, 5, 12)
    assert split_queries(x, kv_heads=2, head_dim=2).shape == (2, 2, 3, 3, 5, 2)  # B K M G T H
    np.testing.assert_array_equal(merge_queries(split_queries(x, kv_heads=2, head_dim=2)), x)
    assert split_rows(x, head_dim=2).shape == (2, 6, 3, 5, 2)  # B K M S H
    np.testing.assert_array_equal(merge_rows(split_rows(x, head_dim=2)), x)


def test_masked_keys_have_no_weight():
    kv = jnp.asarray([[[[1.0, 0.0], [0.0, 9.0]]]])
    out = attend(jnp.ones((1, 1, 1, 1, 2)), Rows(kv, kv, jnp.asarray([[[True, False]]])))
    np.testing.assert_array_equal(out[0, 0, 0, 0], [1.0, 0.0])


def test_blocks_of_rows_are_attended_to_as_one_sequence():
    """Shared rows, masked, and rows of each noise's own, under a causal mask; against the textbook formula, noise by noise."""
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (2, 2, 3, 2, 4, 8))  # B K M G T H
    shared = [jax.random.normal(key, (2, 2, 5, 8)) for key in keys[1:3]]
    own = [jax.random.normal(key, (2, 2, 3, 4, 8)) for key in keys[3:]]
    valid = jnp.asarray([[True] * 5, [True, True, False, True, False]])[:, None]
    causal = jnp.tril(jnp.ones((1, 4, 4), bool))
    out = attend(q, Rows(*shared, valid), Rows(*own, causal))
    mask = jnp.concatenate([jnp.broadcast_to(valid, (2, 4, 5)), jnp.broadcast_to(causal, (2, 4, 4))], axis=-1)
    for m in range(3):
        k, v = (jnp.concatenate([a, b[:, :, m]], axis=2) for a, b in zip(shared, own, strict=True))
        scores = jnp.einsum("bkgth,bksh->bkgts", q[:, :, m], k) / np.sqrt(8)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf))
        np.testing.assert_allclose(out[:, :, m], jnp.einsum("bkgts,bksh->bkgth", weights, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score_bytes", [0, 1 << 30])
def test_heads_one_by_one_attend_as_all_at_once(monkeypatch, score_bytes):
    monkeypatch.setattr(vision, "CPU_SCORE_BYTES", score_bytes)
    q, k, v = (
        jax.random.normal(key, (2, 3, *shape))
        for key, shape in zip(jax.random.split(jax.random.key(0), 3), [(1, 12, 8), (12, 8), (12, 8)], strict=True)
    )
    np.testing.assert_allclose(attend_by_head(q, Rows(k, v)), attend(q, Rows(k, v)), rtol=1e-5, atol=1e-6)


def test_time_embedding_equals_float64():
    t = np.concatenate([np.linspace(0, 1, 2001), np.random.default_rng(0).uniform(size=2000)]).astype(np.float32)
    periods = 4e-3 * (4.0 / 4e-3) ** np.linspace(0.0, 1.0, 360)
    angle = 2 * np.pi * t.astype(np.float64)[:, None] / periods
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    # Plain float32 angles are off by 1e-4 at 1,570 rad.
    np.testing.assert_allclose(
        jax.jit(time_embedding, static_argnums=(1, 2, 3))(t, 720, 4e-3, 4.0), expected, atol=1.5e-6
    )


def test_interpolation_takes_half_pixel_centres_without_antialiasing():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_array_equal(interpolation_matrix(2, 4), expected)
    # Fourfold reduction looks at two of four pixels: no antialiasing.
    np.testing.assert_array_equal(interpolation_matrix(4, 1), [[0, 0.5, 0.5, 0]])


def test_padding_stands_left_and_on_top():
    wide = resize_with_pad(jnp.ones((1, 2, 4, 3)), (8, 8))
    assert wide.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(wide[0, :, :, 0], np.r_[np.zeros((4, 8)), np.ones((4, 8))])
    tall = resize_with_pad(jnp.ones((1, 8, 4, 3)), (8, 8))
    np.testing.assert_array_equal(tall[0, :, :, 0], np.c_[np.zeros((8, 4)), np.ones((8, 4))])


def test_vision_positions():
    np.testing.assert_array_equal(position_ids(2, 4, shifted=False), [0, 2, 8, 10])
    np.testing.assert_array_equal(position_ids(4, 4, shifted=False), np.arange(16))
    # transformers 4.57 in float32: 0, 0, 1, ..., n - 2 on each axis.
    axis = np.array([0, 0, 1, 2])
    np.testing.assert_array_equal(position_ids(4, 4, shifted=True), (axis[:, None] * 4 + axis).reshape(-1))


def test_connector_shuffles_pixels_row_major():
    config, _ = tiny_model()
    width = config.vision.hidden_size
    x = jnp.arange(16.0)[None, :, None] + jnp.arange(width) / 100
    kernel = jnp.eye(4 * width)[:, : config.text.hidden_size]
    out = connector({"proj": {"kernel": kernel}}, x, config)
    # Token (0, 1) of the 2 x 2 grid begins with patch (0, 2), then patch (0, 3).
    np.testing.assert_allclose(out[0, 1], np.concatenate([x[0, 2], x[0, 3]])[: config.text.hidden_size], rtol=1e-6)
    np.testing.assert_allclose(out[0, 2, :width], x[0, 8], rtol=1e-6)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@functools.partial(jax.jit, static_argnums=0)
def run(config: ModelConfig, params, observation: Observation, x_t, t):
    memory = memorise(params, observe(params, observation, config=config), observation.state, config=config)
    return velocity(params, memory, x_t, t, config=config)


def noisy(config: ModelConfig, batch: int = 2, noises: int = 1):
    x_t = jax.random.normal(jax.random.key(5), (batch, noises, config.chunk_size, config.max_action_dim))
    return x_t, jax.random.uniform(jax.random.key(6), (batch, noises))


def test_padding_and_absent_cameras_are_irrelevant(model):
    config, params = model
    observation = tiny_observation()
    scribbled = dataclasses.replace(
        observation,
        tokens=np.where(observation.token_mask, observation.tokens, 7),
        images={**observation.images, WRIST: observation.images[WRIST].copy()},
    )
    scribbled.images[WRIST][-1] = 255
    x_t, t = noisy(config)
    np.testing.assert_array_equal(run(config, params, observation, x_t, t), run(config, params, scribbled, x_t, t))


def test_longer_language_padding_changes_nothing(model):
    config, params = model
    observation = tiny_observation()
    longer = dataclasses.replace(
        observation,
        tokens=np.pad(observation.tokens, ((0, 0), (0, 3)), constant_values=2),
        token_mask=np.pad(observation.token_mask, ((0, 0), (0, 3))),
    )
    x_t, t = noisy(config)
    np.testing.assert_allclose(
        run(config, params, longer, x_t, t), run(config, params, observation, x_t, t), rtol=1e-5, atol=1e-6
    )


def test_noises_of_one_observation_do_not_see_each_other(model):
    config, params = model
    x_t, t = noisy(config, noises=3)
    together = run(config, params, tiny_observation(), x_t, t)
    for m in range(3):
        alone = run(config, params, tiny_observation(), x_t[:, m : m + 1], t[:, m : m + 1])
        np.testing.assert_allclose(together[:, m : m + 1], alone, rtol=1e-5, atol=1e-6)


def test_actions_do_not_see_later_actions(model):
    config, params = model
    x_t, t = noisy(config)
    changed = run(config, params, tiny_observation(), x_t.at[:, :, 3:].add(1.0), t)
    same = run(config, params, tiny_observation(), x_t, t)
    np.testing.assert_array_equal(changed[:, :, :3], same[:, :, :3])
    assert jnp.all(jnp.any(changed[:, :, 3:] != same[:, :, 3:], axis=-1))


def test_the_state_changes_only_its_own_row(model):
    config, params = model
    observation = jax.tree.map(jnp.asarray, tiny_observation())
    context = jax.jit(functools.partial(observe, config=config))(params, observation)
    one, other = (
        jax.jit(functools.partial(extend, config=config))(params, context, s)
        for s in (observation.state, observation.state + 1)
    )
    for (k, v), (one_k, one_v), (_, other_v) in zip(context.kv, one.kv, other.kv, strict=True):
        np.testing.assert_array_equal(one_k[:, :, :-1], k)
        np.testing.assert_array_equal(one_v[:, :, :-1], v)
        assert jnp.all(jnp.any(one_v[:, :, -1] != other_v[:, :, -1], axis=(-1, -2)))
    np.testing.assert_array_equal(one.count, context.mask.sum(1) + 1)


def test_gradients_reach_state_proj_through_the_frozen_layers(model):
    config, params = model
    observation = jax.tree.map(jnp.asarray, tiny_observation())
    context = jax.jit(functools.partial(observe, config=config))(params, observation)
    x_t, t = noisy(config)

    def loss(params):
        memory = memorise(params, context, observation.state, config=config)
        return jnp.mean(velocity(params, memory, x_t, t, config=config) ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    assert jnp.any(gradient["state_proj"]["kernel"] != 0)
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient["vision_model"]))


def test_special_tokens_stand_for_absent_cameras_too():
    policy = tiny_policy(add_image_special_tokens=True, empty_cameras=1)
    config, params = tiny_model(policy)
    observation = jax.tree.map(jnp.asarray, tiny_observation())
    image_tokens = jax.jit(functools.partial(embed_images, config=config))(params, {CAMERA: observation.images[CAMERA]})
    rest = ({CAMERA: observation.image_mask[CAMERA]}, observation.tokens, observation.token_mask)
    context = jax.jit(functools.partial(encode, config=config))(params, image_tokens, *rest)
    # [fake, global] 4 image tokens [fake], [fake, global] [fake] of the absent camera, 5 language tokens
    assert context.mask.shape == (2, 2 + 4 + 1 + 3 + 5)
    config = dataclasses.replace(config, empty_cameras=0)
    without = jax.jit(functools.partial(encode, config=config))(params, image_tokens, *rest)
    assert without.mask.shape == (2, 2 + 4 + 1 + 5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"attention_mode": "self_attn"}, marks=pytest.mark.slow),
        pytest.param({"self_attn_every_n_layers": -1, "num_expert_layers": 2}, marks=pytest.mark.slow),
        pytest.param({"self_attn_every_n_layers": 3}, marks=pytest.mark.slow),
        pytest.param({"num_vlm_layers": 0, "expert_width_multiplier": 0.5}, marks=pytest.mark.slow),
        {"num_vlm_layers": 1},
    ],
)
def test_every_arrangement_of_layers_runs(changes):
    config, params = tiny_model(tiny_policy(**changes))
    x_t, t = noisy(config)
    out = run(config, params, tiny_observation(), x_t, t)
    assert out.shape == x_t.shape
    assert jnp.all(jnp.isfinite(out))


def test_bfloat16_follows_float32(model):
    config, params = model
    x_t, t = noisy(config)
    exact = run(config, params, tiny_observation(), x_t, t)
    rounded = run(dataclasses.replace(config, dtype="bfloat16"), params, tiny_observation(), x_t, t)
    assert rounded.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact) < 3e-2


def test_images_without_a_square_grid_are_refused(model):
    config, params = model
    config = dataclasses.replace(config, resize_imgs_with_padding=None)
    with pytest.raises(ConfigError, match="resize_imgs_with_padding"):
        embed_images(params, {CAMERA: jnp.zeros((1, 24, 32, 3), jnp.uint8)}, config=config)


def test_expert_layers_that_lerobot_cannot_run_are_refused():
    with pytest.raises(ConfigError, match="num_expert_layers"):
        network_of(tiny_policy(num_expert_layers=2), VLM)
    with pytest.raises(ConfigError, match="must divide"):
        network_of(tiny_policy(num_expert_layers=3), VLM)


def test_dimensions_of_the_published_model():
    config = network_of(tiny_policy(num_vlm_layers=16, resize_imgs_with_padding=(512, 512)), VLMConfig())
    assert (config.expert_hidden_size, config.expert_intermediate_size) == (720, 2048)
    assert config.expert_layer_kinds == ("self", "cross") * 8
    assert config.num_context_layers == 16
