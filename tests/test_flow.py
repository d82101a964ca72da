"""The flow's convention and properties, on fields whose solution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow import flow
from jaxreflow.training import experimental

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


@pytest.mark.parametrize("num_steps", [1, 3])
def test_heun_is_exact_where_the_field_is_linear_in_time(pair, num_steps):
    """dx/dt = noise - x_0 + b (2 t - 1) also leads from noise to x_0; Euler is off by b / num_steps there."""
    x_0, noise = pair

    def linear(_, t):
        return noise - x_0 + 3.0 * (2 * t[..., None, None] - 1)

    np.testing.assert_allclose(experimental.heun(linear, noise, num_steps), x_0, atol=5e-6)
    np.testing.assert_allclose(flow.euler(linear, noise, num_steps), x_0 - 3.0 / num_steps, atol=5e-6)
    assert experimental.heun(linear, noise, num_steps).dtype == jnp.float32


def swirl(x, t):
    """dx/dt = 3 x cos(3 t): x(0) = x(1) e^(-sin 3)."""
    return 3 * x * jnp.cos(3 * t)[..., None, None]


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_in_their_order(pair, name, order):
    """Halving the step divides the error by 2^order, down to the actions and up to the noise."""
    noise, solver = pair[1], experimental.SOLVERS[name]
    x_0 = noise * np.exp(-np.sin(3.0))

    def rate(end, exact):
        coarse, fine = (float(jnp.abs(end(steps) - exact).max()) for steps in (40, 80))
        return np.log2(coarse / fine)

    np.testing.assert_allclose(rate(lambda steps: solver(swirl, noise, steps), x_0), order, atol=0.15)
    np.testing.assert_allclose(
        rate(lambda steps: experimental.invert(solver, swirl, x_0, steps), noise), order, atol=0.15
    )


@pytest.mark.parametrize("solver", experimental.SOLVERS.values())
def test_sampling_from_inverted_noise_gives_the_actions_back(pair, solver):
    x_0, noise = pair
    np.testing.assert_allclose(experimental.invert(solver, lambda x, t: noise - x_0, x_0, 2), noise, atol=2e-6)
    inverted = experimental.invert(solver, swirl, x_0, 1000)
    assert float(jnp.abs(inverted - x_0).max()) > 0.1
    np.testing.assert_allclose(solver(swirl, inverted, 1000), x_0, atol=0.02)


def test_inversion_visits_times_from_zero_up():
    # dx/dt = t: Euler's sum of (k/4)/4 over k = 0..3 is 0.375, the trapezoid's is the integral.
    def field(x, t):
        return jnp.broadcast_to(t[..., None, None], x.shape)

    np.testing.assert_allclose(experimental.invert(flow.euler, field, jnp.zeros(SHAPE), 4), 0.375)
    np.testing.assert_allclose(experimental.invert(experimental.heun, field, jnp.zeros(SHAPE), 4), 0.5)


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


@pytest.mark.parametrize("masked", [False, True])
def test_a_pair_is_looked_at_at_each_of_its_times(pair, masked):
    """As if the pair had been there once for each of them, in the order of t."""
    x_0, noise = pair
    t = jax.random.uniform(jax.random.key(2), (SHAPE[0], 2 * SHAPE[1]))
    valid = jnp.arange(np.prod(SHAPE)).reshape(SHAPE) % 3 > 0

    def loss(x_0, noise, valid, t):
        field = lambda x, t: x * t[..., None, None]  # noqa: E731
        return (
            experimental.masked_reflow_loss(field, x_0, noise, t, valid)
            if masked
            else flow.reflow_loss(field, x_0, noise, t)
        )

    parts = [loss(x_0, noise, valid, t[:, i::2]) for i in range(2)]
    total, count = loss(x_0, noise, valid, t)
    np.testing.assert_allclose(total, sum(part for part, _ in parts), rtol=1e-6)
    assert count == 2 * parts[0][1]


def test_reflow_loss_on_real_dims_leaves_the_others_out(pair):
    x_0, noise = pair
    error = jnp.zeros(SHAPE).at[..., 3].set(9.0).at[..., 2].set(2.0)
    total, count = flow.reflow_loss(lambda x, t: noise - x_0 + error, x_0, noise, jnp.ones(SHAPE[:2]), dims=3)
    np.testing.assert_allclose(total, 4.0 * 6 * 5)
    assert count == 6 * 5 * 3


def test_pseudo_huber_is_the_published_norm_over_the_root_of_the_entries(pair):
    x_0, noise = pair
    scale = jnp.asarray([[1e-5, 1e-3, 1.0], [0.0, 0.1, 10.0]])
    error = scale[..., None, None] * jax.random.normal(jax.random.key(2), SHAPE)

    def loss(error):
        field = lambda x, t: noise - x_0 + error  # noqa: E731
        return flow.reflow_loss(field, x_0, noise, jnp.ones(SHAPE[:2]), objective=flow.pseudo_huber)

    (total, count), gradient = loss(error), jax.grad(lambda error: loss(error)[0])(error)
    # What the field adds is rounded at the size of noise - x_0.
    seen = np.asarray(noise - x_0, np.float64) - np.asarray(noise - x_0 + error, np.float64)
    squares, dim = np.square(seen).sum((-2, -1)), 20
    c = 0.00054 * np.sqrt(dim)
    np.testing.assert_allclose(total / count, ((np.sqrt(squares + c**2) - c) / np.sqrt(dim)).mean(), rtol=1e-5)
    assert count == np.prod(SHAPE)
    np.testing.assert_allclose(gradient, -seen / np.sqrt(squares / dim + 0.00054**2)[..., None, None], rtol=1e-4)


def test_only_valid_entries_of_masked_pairs_count(pair):
    """By both objectives, and a chunk without any adds nothing, not even a NaN to the gradient."""
    x_0, noise = pair
    valid = jnp.zeros(SHAPE, bool).at[0, :, :4, :3].set(True).at[1, 0, :1, :2].set(True)
    error = jnp.where(valid, 2.0, jnp.nan)

    def loss(scale, objective):
        field = lambda x, t: noise - x_0 + scale * error  # noqa: E731
        return experimental.masked_reflow_loss(field, x_0, noise, jnp.ones(SHAPE[:2]), valid, objective=objective)

    total, count = loss(1.0, flow.mean_square)
    assert count == 3 * 12 + 2
    np.testing.assert_allclose(total / count, 4.0, rtol=1e-6)
    total, count = loss(1.0, flow.pseudo_huber)
    assert count == 3 * 12 + 2
    np.testing.assert_allclose(total / count, np.sqrt(4 + 0.00054**2) - 0.00054, rtol=1e-6)
    clean = jnp.zeros(SHAPE)
    for objective in experimental.OBJECTIVES.values():
        gradient = jax.grad(
            lambda e, o=objective: experimental.masked_reflow_loss(
                lambda x, t: noise - x_0 + e, x_0, noise, jnp.ones(SHAPE[:2]), valid, objective=o
            )[0]
        )(clean)
        assert jnp.all(jnp.isfinite(gradient))
        assert not jnp.any(jnp.where(valid, 0.0, gradient))


@pytest.mark.parametrize(("dims", "last"), [(None, True), (3, False)])
def test_real_pairs_are_recorded_actions_with_the_teachers_padded_dims(pair, dims, last):
    endpoint, noise = pair
    actions = jnp.pad(jax.random.normal(jax.random.key(5), (2, 5, 3)), ((0, 0), (0, 0), (0, 1)))
    is_pad = jnp.zeros((2, 5), bool).at[1, 3:].set(True)
    x_0, mixed, valid = experimental.mix_real_pairs(
        lambda x: x + 10.0, endpoint, noise, actions, is_pad, real_noises=2, action_dim=3, dims=dims
    )
    for m in (0, 1):
        np.testing.assert_array_equal(x_0[:, m, :, :3], actions[..., :3])
        np.testing.assert_array_equal(x_0[:, m, :, 3], endpoint[:, m, :, 3])
        np.testing.assert_array_equal(valid[:, m, :, :3], jnp.broadcast_to(~is_pad[..., None], (2, 5, 3)))
    np.testing.assert_array_equal(mixed[:, :2], x_0[:, :2] + 10.0)
    assert not jnp.any(valid[:, :2, :, 3])
    np.testing.assert_array_equal(x_0[:, 2], endpoint[:, 2])
    np.testing.assert_array_equal(mixed[:, 2], noise[:, 2])
    np.testing.assert_array_equal(valid[:, 2], jnp.broadcast_to(jnp.asarray([True, True, True, last]), (2, 5, 4)))


def test_no_gradient_flows_into_the_endpoint(pair):
    x_0, noise = pair
    gradient = jax.grad(lambda e: flow.reflow_loss(lambda x, t: x, e, noise, jnp.ones(SHAPE[:2]))[0])(x_0)
    assert not jnp.any(gradient)
    everywhere, half = jnp.ones(SHAPE, bool), jnp.full(SHAPE[:2], 0.5)
    pairs = jax.grad(lambda p: experimental.masked_reflow_loss(lambda x, t: x, *p, half, everywhere)[0])((x_0, noise))
    assert not any(map(jnp.any, pairs))


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
    "noise-biased": 0.999 * 0.8 + 0.001,
    "uniform": 0.5,
    "u-shaped": 0.5,
    "exponential": (3 * np.exp(4) + 1) / (4 * (np.exp(4) - 1)),
    "half-at-one": 0.75,
    "half-at-one-beta": 0.5 + 0.5 * (0.999 * 0.6 + 0.001),
    "half-at-one-exponential": 0.5 + 0.5 * (3 * np.exp(4) + 1) / (4 * (np.exp(4) - 1)),
    "discrete": 0.75,
}


@pytest.mark.parametrize("law", experimental.TIME_LAWS)
def test_time_laws_have_their_means_and_stay_in_range(law):
    t = experimental.TIME_LAWS[law](jax.random.key(3), (20_000,))
    assert t.dtype == jnp.float32
    assert float(t.min()) >= 0.0
    assert float(t.max()) <= 1.0
    np.testing.assert_allclose(t.mean(), EXPECTED_MEANS[law], atol=0.01)


def test_noise_biased_law_is_beta_4_1():
    """P(t <= 0.001 + 0.999 q) = q^4."""
    u = (experimental.noise_biased_time(jax.random.key(0), (40_000,)) - 0.001) / 0.999
    q = np.asarray([0.3, 0.6, 0.8, 0.9])
    np.testing.assert_allclose([(u <= x).mean() for x in q], q**4, atol=0.01)


@pytest.mark.parametrize("law", [name for name in experimental.TIME_LAWS if name.startswith("half-at-one")])
def test_half_of_the_times_stand_at_exactly_one(law):
    t = experimental.TIME_LAWS[law](jax.random.key(0), (20_000,))
    np.testing.assert_allclose((t == 1.0).mean(), 0.5, atol=0.01)


def test_discrete_law_has_the_times_of_two_steps():
    np.testing.assert_array_equal(np.unique(experimental.discrete_time(jax.random.key(0), (100,))), [0.5, 1.0])


def test_u_shape_has_its_density():
    t = flow.u_shaped_time(jax.random.key(0), (40_000,))
    counts, edges = np.histogram(t, bins=10, range=(0, 1))
    mass = np.diff(np.exp(4 * edges) - np.exp(4 * (1 - edges))) / (2 * (np.exp(4) - 1))
    np.testing.assert_allclose(counts / 40_000, mass, atol=0.008)
