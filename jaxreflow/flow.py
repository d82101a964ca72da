"""Rectified flow, without a network: interpolation, laws of time, solvers and the losses.

Convention, everywhere in this package (LeRobot's and openpi's; most rectified-flow papers run the other way):
`t = 1` is noise, `t = 0` is the action.

    x_t = t * noise + (1 - t) * x_0        u = d x_t / d t = noise - x_0
    Euler:  x <- x - v(x, t) / num_steps   at t = 1, 1 - 1/num_steps, ..., 1/num_steps

A `Velocity` is any function `(x_t, t) -> v_t`; t has the leading axes of x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

Velocity: TypeAlias = Callable[[Array, Array], Array]
TimeLaw: TypeAlias = Callable[[Array, tuple[int, ...]], Array]
Solver: TypeAlias = Callable[[Velocity, Array, int], Array]
Objective: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]

PSEUDO_HUBER_C = 0.00054


def interpolate(
    x_0: Float[Array, "*batch C A"], noise: Float[Array, "*batch C A"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch C A"]:
    """The straight path at time t: `t * noise + (1 - t) * x_0`."""
    t = t[..., None, None]
    return t * noise + (1.0 - t) * x_0


def sample_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, ...]:
    """N(0, I) in float32 on every padded action dimension: the one source of noise, for training and for acting."""
    return jax.random.normal(key, shape, jnp.float32)


def euler_times(num_steps: int) -> Float[np.ndarray, " T"]:
    """The times at which `num_steps` Euler steps evaluate the velocity: 1, 1 - 1/num_steps, ..., 1/num_steps."""
    return (1.0 - np.arange(num_steps, dtype=np.float64) / num_steps).astype(np.float32)


def euler(velocity: Velocity, noise: Float[Array, "*batch C A"], num_steps: int) -> Float[Array, "*batch C A"]:
    """Integrates from noise (t = 1) to actions (t = 0) with `num_steps` Euler steps in float32."""
    times = jnp.asarray(euler_times(num_steps))

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x - velocity(x, jnp.broadcast_to(t, x.shape[:-2])) / num_steps, None

    return jax.lax.scan(step, noise.astype(jnp.float32), times)[0]


def heun(velocity: Velocity, noise: Float[Array, "*batch C A"], num_steps: int) -> Float[Array, "*batch C A"]:
    """Integrates from noise (t = 1) to actions (t = 0) with `num_steps` steps of Heun's method in float32.

    The explicit trapezoid, of second order: an Euler step, then the mean of the velocities at its two ends. Also the last
    step takes that mean, at t = 0, where this field is finite; so a step costs two evaluations.
    """
    grid = 1.0 - np.arange(num_steps + 1, dtype=np.float64) / num_steps

    def step(x: Array, ends: Array) -> tuple[Array, None]:
        t, after = (jnp.broadcast_to(end, x.shape[:-2]) for end in ends)
        first = velocity(x, t)
        second = velocity(x - first / num_steps, after)
        return x - (first + second) / (2 * num_steps), None

    ends = jnp.asarray(np.stack([grid[:-1], grid[1:]], axis=1), jnp.float32)
    return jax.lax.scan(step, noise.astype(jnp.float32), ends)[0]


SOLVERS: Mapping[str, Solver] = {"euler": euler, "heun": heun}


def invert(
    solver: Solver, velocity: Velocity, x_0: Float[Array, "*batch C A"], num_steps: int
) -> Float[Array, "*batch C A"]:
    """The noise that the flow carries to x_0: the same solver on the same field, upward from t = 0 to t = 1.

    In s = 1 - t that is the sampler itself, on the field -v(x, 1 - s): for Euler, `x <- x + v(x, t) / num_steps` at
    `t = 0, 1/num_steps, ..., 1 - 1/num_steps`.
    """
    return solver(lambda x, s: -velocity(x, 1.0 - s), x_0, num_steps)


def squared_errors(
    velocity: Velocity, x_0: Float[Array, "*batch C A"], noise: Float[Array, "*batch C A"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch C A"]:
    """`(noise - x_0 - v(x_t, t))^2`, elementwise: what both losses average."""
    error = noise - x_0 - velocity(interpolate(x_0, noise, t), t)
    return jnp.square(error.astype(jnp.float32))


def mean_valid(
    errors: Float[Array, "B M C A"], action_is_pad: Bool[Array, "B C"], action_dim: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count over real action dims inside the episode: LeRobot's reduction since 0.5 (`lerobot` main)."""
    valid = jnp.broadcast_to(~action_is_pad[:, None, :, None], (*errors.shape[:-1], action_dim))
    return jnp.sum(errors[..., :action_dim] * valid), jnp.sum(valid, dtype=jnp.float32)


def mean_padded(
    errors: Float[Array, "B M C A"], action_is_pad: Bool[Array, "B C"], action_dim: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count over all padded dims and positions: LeRobot 0.4.4's reduction, and the reflow loss's."""
    del action_is_pad, action_dim
    return jnp.sum(errors), jnp.float32(errors.size)


REDUCTIONS: Mapping[str, Callable[..., tuple[Array, Array]]] = {
    "lerobot-main": mean_valid,
    "lerobot-0.4.4": mean_padded,
}


def flow_matching_loss(
    velocity: Velocity,
    actions: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    t: Float[Array, "B M"],
    action_is_pad: Bool[Array, "B C"],
    *,
    action_dim: int,
    reduction: str = "lerobot-main",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Flow matching on recorded actions (1-rectified flow): sum of squared errors and their count; the loss is the quotient."""
    return REDUCTIONS[reduction](squared_errors(velocity, actions, noise, t), action_is_pad, action_dim)


def mean_square(
    squares: Float[Array, "B M C D"], entries: Float[Array, "B M"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum and count of squared errors, `entries` of which count in each chunk (the others are zero)."""
    return jnp.sum(squares), jnp.sum(entries)


def pseudo_huber(
    squares: Float[Array, "B M C D"], entries: Float[Array, "B M"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Pseudo-Huber norm of each chunk's error e, `sqrt(||e||^2 + c^2) - c` with `c = 0.00054 sqrt(d)`, over `sqrt(d)`.

    Lee, Lin and Fanti 2024 ("Improving the training of rectified flows") take it for reflow, with the scale of c from Song
    and Dhariwal 2023 ("Improved techniques for training consistency models"); d is the number of entries. Divided by
    sqrt(d) it is the chunk's root mean square error, `sqrt(mean e^2 + 0.00054^2) - 0.00054`, whatever d is, and its
    gradient is that of the mean square divided by 2 sqrt(mean e^2 + 0.00054^2): learning rates and gradient norms stay in
    their order of magnitude. A chunk weighs as many times as it has entries, as in the mean square.
    """
    mean = jnp.sum(squares, axis=(-2, -1)) / jnp.maximum(entries, 1.0)
    return jnp.sum(entries * (jnp.sqrt(mean + PSEUDO_HUBER_C**2) - PSEUDO_HUBER_C)), jnp.sum(entries)


OBJECTIVES: Mapping[str, Objective] = {"mse": mean_square, "pseudo-huber": pseudo_huber}


def reflow_loss(
    velocity: Velocity,
    endpoint: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    t: Float[Array, "B N"],
    *,
    objective: Objective = mean_square,
    dims: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Reflow on pairs (noise, teacher's endpoint): sum and count over all positions and the first `dims` dims (None: all).

    Nothing is masked: the teacher's endpoint is defined at every position and in every padded dimension, and the sampler
    integrates them all (Liu et al. 2022, equation 1 with the coupling of the teacher's own ODE). Each pair
    counts at N / M times: the teacher integrates once for all of them.
    """
    endpoint, noise = jax.lax.stop_gradient(_at_all_times((endpoint, noise), t))
    squares = squared_errors(velocity, endpoint, noise, t)[..., :dims]
    return objective(squares, jnp.full(t.shape, math.prod(squares.shape[2:]), jnp.float32))


def masked_reflow_loss(
    velocity: Velocity,
    x_0: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    t: Float[Array, "B N"],
    valid: Bool[Array, "B M C A"],
    *,
    objective: Objective = mean_square,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`reflow_loss` on pairs (noise, x_0) of which only the `valid` entries are known: sum and count over these."""
    x_0, noise, valid = jax.lax.stop_gradient(_at_all_times((x_0, noise, valid), t))
    squares = squared_errors(velocity, x_0, noise, t)
    return objective(jnp.where(valid, squares, 0.0), jnp.sum(valid, axis=(-2, -1), dtype=jnp.float32))


def _at_all_times(pairs: tuple[Array, ...], t: Float[Array, "B N"]) -> tuple[Array, ...]:
    """Each of M pairs once for each of its N / M times, which follow each other in t."""
    return tuple(jnp.repeat(part, t.shape[1] // part.shape[1], axis=1) for part in pairs)


def mix_real_pairs(
    inverse: Callable[[Array], Array],
    endpoint: Float[Array, "B M C A"],
    noise: Float[Array, "B M C A"],
    actions: Float[Array, "B C A"],
    action_is_pad: Bool[Array, "B C"],
    *,
    real_noises: int,
    action_dim: int,
    dims: int | None = None,
) -> tuple[Float[Array, "B M C A"], Float[Array, "B M C A"], Bool[Array, "B M C A"]]:
    """Puts recorded chunks in the place of each observation's first `real_noises` endpoints: `(x_0, noise, valid)`.

    `inverse` is the teacher's flow from x_0 up to noise (arXiv 2412.08175: repeated reflow on sampled pairs alone
    collapses). Which pairs are real depends on their place among the M noises only, so their share is the same in every
    batch, device and microbatch.

    A recorded chunk has no padded dims: loaders fill them with zeros. Inverted, zeros would become padded noise that no
    sampler draws (a teacher trained on zeros leads them to zeros; one whose padded dims were masked was never told), and
    the student would be trained where it is never asked. So the padded dims of a real x_0 are the teacher's own, the
    endpoint of the noise drawn at that place: inverted, they become about that noise again. Nothing is learned from them in
    a real pair, nor from positions beyond the episode's end, which no earlier position attends to.
    """
    recorded = jnp.broadcast_to(actions[:, None, :, :action_dim], (*noise[:, :real_noises].shape[:-1], action_dim))
    real = jnp.concatenate([recorded.astype(endpoint.dtype), endpoint[:, :real_noises, :, action_dim:]], axis=-1)
    dim = jnp.arange(noise.shape[-1])
    known = ~action_is_pad[:, None, :, None] & (dim < action_dim)
    known = jnp.broadcast_to(known, real.shape)
    rest = jnp.broadcast_to(dim < (noise.shape[-1] if dims is None else dims), noise[:, real_noises:].shape)
    return (
        jnp.concatenate([real, endpoint[:, real_noises:]], axis=1),
        jnp.concatenate([inverse(real), noise[:, real_noises:]], axis=1),
        jnp.concatenate([known, rest], axis=1),
    )


def beta_time(key: Array, shape: tuple[int, ...]) -> Array:
    """LeRobot's law: 0.999 * Beta(1.5, 1) + 0.001; Beta(a, 1) is U^(1/a)."""
    return 0.999 * jax.random.uniform(key, shape) ** (2.0 / 3.0) + 0.001


def noise_biased_time(key: Array, shape: tuple[int, ...]) -> Array:
    """LeRobot's form with more mass near noise: 0.999 * Beta(4, 1) + 0.001 (arXiv 2606.05737)."""
    return 0.999 * jax.random.uniform(key, shape) ** 0.25 + 0.001


def uniform_time(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform on (0, 1]."""
    return 1.0 - jax.random.uniform(key, shape)


def exponential_time(key: Array, shape: tuple[int, ...], rate: float = 4.0) -> Array:
    """Density proportional to e^(rate * t) on [0, 1], by the inverse of its distribution function."""
    return jnp.log1p(jax.random.uniform(key, shape) * math.expm1(rate)) / rate


def u_shaped_time(key: Array, shape: tuple[int, ...], rate: float = 4.0) -> Array:
    """Density proportional to e^(rate * t) + e^(rate * (1 - t)) (Lee, Lin and Fanti 2024)."""
    draw, flip = jax.random.split(key)
    t = exponential_time(draw, shape, rate)
    return jnp.where(jax.random.bernoulli(flip, 0.5, shape), t, 1.0 - t)


def half_at_one(rest: TimeLaw) -> TimeLaw:
    """Half the mass at exactly t = 1, where a one-step student is evaluated; the other half by the law `rest`."""

    def law(key: Array, shape: tuple[int, ...]) -> Array:
        draw, choose = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(choose, 0.5, shape), 1.0, rest(draw, shape))

    return law


def discrete_time(key: Array, shape: tuple[int, ...]) -> Array:
    """t in {1, 1/2}, the times of a two-step sampler, with equal mass."""
    return jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, 0.5)


TIME_LAWS: Mapping[str, TimeLaw] = {
    "beta": beta_time,
    "uniform": uniform_time,
    "u-shaped": u_shaped_time,
    "exponential": exponential_time,
    "half-at-one": half_at_one(u_shaped_time),
    "half-at-one-beta": half_at_one(beta_time),
    "half-at-one-exponential": half_at_one(exponential_time),
    "discrete": discrete_time,
    "noise-biased": noise_biased_time,
}
