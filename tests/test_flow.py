"""The flow's convention and properties, on fields whose solution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow import flow

SHAPE = (2, 3, 5, 4)


@pytest.fixture(scope="module")
def pair():
    x_0, noise = (jax.random.normal(jax.random.key(i), SHAPE) for i in range(2))
    return x_0, noise


def test_time_one_is_noise_and_time_zero_the_action(pair):
    x_0, noise = pair
    np.testing.assert_array_equal(flow.interpolate(x_0, noise, jnp.ones(SHAPE[:2])), noise)
    np.testing.assert_array_equal(flow.interpolate(x_0, noise, jnp.zeros(SHAPE[:2])), x_0)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_euler_is_exact_on_the_straight_field(pair, num_steps):
    """The constant field u = noise - x_0 leads from noise to x_0: a wrong sign or direction ends at 2 noise - x_0."""
    x_0, noise = pair
    np.testing.assert_allclose(flow.euler(lambda x, t: noise - x_0, noise, num_steps), x_0, atol=2e-6)


def test_euler_visits_times_from_one_down_to_one_step(pair):
    # dx/dt = t: the sum of (1 - k/4)/4 over k = 0..3 is 0.625.
    end = flow.euler(lambda x, t: jnp.broadcast_to(t[..., None, None], x.shape), jnp.zeros(SHAPE), 4)
    np.testing.assert_allclose(end, -0.625)
    assert flow.euler(lambda x, t: x, pair[1], 1).dtype == jnp.float32


def test_reflow_loss_is_zero_for_the_straight_teacher(pair):
    x_0, noise = pair
    total, count = flow.reflow_loss(lambda x, t: noise - x_0, x_0, noise, jnp.full(SHAPE[:2], 0.3))
    assert (float(total), float(count)) == (0.0, float(np.prod(SHAPE)))


def test_reflow_loss_covers_every_padded_dimension_and_position(pair):
    """A student that errs in one padded dim at one position alone must pay for it."""
    x_0, noise = pair
    for position in np.ndindex(SHAPE[2:]):
        error = jnp.zeros(SHAPE).at[:, :, *position].set(2.0)
        total, _ = flow.reflow_loss(lambda x, t, e=error: noise - x_0 + e, x_0, noise, jnp.ones(SHAPE[:2]))
        np.testing.assert_allclose(total, 4.0 * SHAPE[0] * SHAPE[1])


def test_no_gradient_flows_into_the_endpoint(pair):
    x_0, noise = pair
    gradient = jax.grad(lambda e: flow.reflow_loss(lambda x, t: x, e, noise, jnp.ones(SHAPE[:2]))[0])(x_0)
    assert not jnp.any(gradient)


def test_flow_matching_leaves_padding_out(pair):
    x_0, noise = pair
    is_pad = jnp.zeros((2, 5), bool).at[1, 3:].set(True)
    arguments = (x_0, noise, jnp.full(SHAPE[:2], 0.5), is_pad)
    outside = jnp.zeros(SHAPE).at[..., 3].set(9.0).at[1, :, 3:].set(9.0)
    total, count = flow.flow_matching_loss(lambda x, t: noise - x_0 + outside, *arguments, action_dim=3)
    assert (float(total), float(count)) == (0.0, 3.0 * (5 + 3) * 3)
    everything = flow.flow_matching_loss(
        lambda x, t: noise - x_0 + outside, *arguments, action_dim=3, reduction="lerobot-0.4.4"
    )
    np.testing.assert_allclose(everything[0], 81.0 * (6 * 5 + 3 * 2 * 3))
    assert everything[1] == np.prod(SHAPE)


def test_noise_is_standard_normal_on_every_dimension():
    noise = flow.sample_noise(jax.random.key(0), (4000, 2, 32))
    assert noise.dtype == jnp.float32
    np.testing.assert_allclose(noise.mean(axis=(0, 1)), 0.0, atol=0.06)
    np.testing.assert_allclose(noise.std(axis=(0, 1)), 1.0, atol=0.05)


EXPECTED_MEANS = {
    "beta": 0.999 * 0.6 + 0.001,
    "uniform": 0.5,
    "u-shaped": 0.5,
    "exponential": (3 * np.exp(4) + 1) / (4 * (np.exp(4) - 1)),
    "half-at-one": 0.75,
    "discrete": 0.75,
}


@pytest.mark.parametrize("law", flow.TIME_LAWS)
def test_time_laws_have_their_means_and_stay_in_range(law):
    t = flow.TIME_LAWS[law](jax.random.key(3), (20_000,))
    assert t.dtype == jnp.float32
    assert float(t.min()) >= 0.0
    assert float(t.max()) <= 1.0
    np.testing.assert_allclose(t.mean(), EXPECTED_MEANS[law], atol=0.01)


def test_half_of_the_default_law_stands_at_exactly_one():
    t = flow.half_at_one_time(jax.random.key(0), (20_000,))
    np.testing.assert_allclose((t == 1.0).mean(), 0.5, atol=0.01)
    np.testing.assert_array_equal(np.unique(flow.discrete_time(jax.random.key(0), (100,))), [0.5, 1.0])


def test_u_shape_has_its_density():
    t = flow.u_shaped_time(jax.random.key(0), (40_000,))
    counts, edges = np.histogram(t, bins=10, range=(0, 1))
    mass = np.diff(np.exp(4 * edges) - np.exp(4 * (1 - edges))) / (2 * (np.exp(4) - 1))
    np.testing.assert_allclose(counts / 40_000, mass, atol=0.008)
